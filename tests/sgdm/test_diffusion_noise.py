"""Randomness that knows nothing of how the work was divided."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm.diffusion.noise import NoiseSource, training_noise

SHAPE = (3, 8, 8)


@given(numbers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=30)
def test_an_image_has_its_noise_in_any_company(numbers: list[int], seed: int) -> None:
    together = NoiseSource(seed, numbers, SHAPE, "cpu")
    first, second = together.draw(), together.draw()
    for i, number in enumerate(numbers):
        alone = NoiseSource(seed, [number], SHAPE, "cpu")
        assert torch.equal(alone.draw()[0], first[i])
        assert torch.equal(alone.draw()[0], second[i])


def test_streams_are_unrelated() -> None:
    """Near, swapped or of the same sum: two seeds, image numbers or draws share nothing, at no offset either."""
    draws = []
    for seed, number in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2**32, 0), (0, 2**32)]:
        source = NoiseSource(seed, [number], SHAPE, "cpu")
        draws += [source.draw().flatten(), source.draw().flatten()]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / 192**0.5  # five standard deviations of 192 numbers
    for a, b in itertools.combinations(draws, 2):
        assert torch.isin(a, b).float().mean() < 0.05


def test_noise_is_standard_normal() -> None:
    noise = NoiseSource(3, range(200), SHAPE, "cpu").draw()
    assert noise.dtype == torch.float32
    assert noise.shape == (200, *SHAPE)
    assert noise.is_contiguous(memory_format=torch.channels_last)
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5
    assert noise.square().mean().item() == pytest.approx(1, abs=5 * (2 / noise.numel()) ** 0.5)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / noise.numel()) ** 0.5)


@pytest.mark.parametrize(("seed", "number"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_numbers_that_do_not_fit_are_refused(seed: int, number: int) -> None:
    with pytest.raises(ValueError, match="is outside 0"):
        NoiseSource(seed, [number], SHAPE, "cpu")


@given(parts=st.sampled_from([1, 2, 3, 4, 6, 12]), first_image=st.integers(0, 10**12), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=20)
def test_training_noise_is_the_same_in_any_number_of_parts(parts: int, first_image: int, seed: int) -> None:
    """Of processes or of steps: a batch of 12, drawn by several, is also several batches of fewer images."""
    whole = training_noise(seed, first_image, 12, SHAPE, "cpu")
    size = 12 // parts
    pieces = [training_noise(seed, first_image + part * size, size, SHAPE, "cpu") for part in range(parts)]
    for name in whole._fields:
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))


def test_training_noise_changes_with_seed_and_time() -> None:
    noise, level, drop, flip = (
        torch.stack([training_noise(*key, 6, SHAPE, "cpu")[i].flatten() for key in KEYS]) for i in range(4)
    )
    assert (torch.corrcoef(noise) - torch.eye(len(KEYS))).abs().max() < 5 / noise.shape[1] ** 0.5
    assert len(torch.cat((level, drop, flip)).unique()) == 3 * 6 * len(KEYS)


KEYS = [(0, 0), (0, 6), (6, 0), (1, 12), (12, 1), (0, 2**32), (2**32, 0), (2**64 - 1, 2**63 - 7)]


@pytest.mark.parametrize(
    ("seed", "first_image", "message"),
    [
        (-1, 0, r"a seed in 0 \.\. 2\^64-1, got -1"),
        (2**64, 0, "a seed in 0"),
        (0, -1, r"images -1 \.\. -1 \+ 2 of a run: they are numbered 0"),
        (0, 2**63 - 2, "numbered 0"),
    ],
)
def test_training_images_that_have_no_number_are_refused(seed: int, first_image: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_noise(seed, first_image, 2, SHAPE, "cpu")


def test_training_noise_has_the_right_distributions() -> None:
    noise, level, drop, flip = training_noise(0, 128, 4096, (3, 2, 2), "cpu")
    assert noise.shape == (4096, 3, 2, 2)
    assert noise.is_contiguous(memory_format=torch.channels_last)
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5
    assert noise.square().mean().item() == pytest.approx(1, abs=5 * (2 / noise.numel()) ** 0.5)
    for uniform in (level, drop, flip):
        assert uniform.shape == (4096,)
        assert 0 <= uniform.min() <= uniform.max() < 1
        assert uniform.mean().item() == pytest.approx(0.5, abs=5 / (12 * 4096) ** 0.5)
    correlation = torch.corrcoef(torch.stack((level, drop, flip))) - torch.eye(3)
    assert correlation.abs().max() < 5 / 4096**0.5
