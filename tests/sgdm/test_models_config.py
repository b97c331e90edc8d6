"""Configurations of a UNet that cannot be built name the field, the value and what it must be."""

from __future__ import annotations

import pytest

from sgdm.models.config import UNetConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "UNetConfig.image_size is 30; it must be a multiple of 4"),
        ({"attention_downsamples": (3,)}, r"attention_downsamples is \(3,\); .* among .* \(1, 2, 4\)"),
        ({"heads": 7}, "heads is 7; it must be a divisor of 512 channels"),
        ({"head_channels": 48}, "head_channels is 48; it must be a divisor of 512 channels"),
        ({"channels": 27}, "channels is 27; it must be even"),
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"num_clusters": 0}, "num_clusters is 0"),
        ({"null_condition": "learned"}, "null_condition is learned; it must be zero without clusters"),
        ({"mask_channels": -1}, "mask_channels is -1; it must be at least 0"),
    ],
)
def test_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)


def test_head_channels_replace_heads() -> None:
    config = UNetConfig(channels=192, channel_multipliers=(1, 2, 3, 4), attention_downsamples=(2, 4), head_channels=64)
    assert config.attention_widths == (384, 576, 768)
    assert [config.heads_of(width) for width in config.attention_widths] == [6, 9, 12]


def test_every_field_explains_itself() -> None:
    tyro = pytest.importorskip("tyro")
    help_text = tyro.extras.get_parser(UNetConfig).format_help()
    for words in ("in pixels", "the network is not guided by clusters", "Channels of a context token"):
        assert words in " ".join(help_text.replace("│", " ").split())
