"""The architecture of a UNet as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class UNetConfig:
    """Defaults: the network of Self-Guided Diffusion Models at 64x64 (arXiv 2210.06462), unconditional."""

    # Read by pydantic where a configuration comes from a file: an unknown field is an error.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    image_size: int = 64
    """Height and width of an image, in pixels. A multiple of the total downsampling, patch_size 2^(levels - 1)."""

    in_channels: int = 3
    """Channels of the noisy image."""

    out_channels: int = 3
    """Channels of the prediction."""

    patch_size: int = 1
    """Side of the squares of pixels that become channels before the first convolution, and pixels again after the
    last. 1, as in the paper: none. 2 spares a small machine the resolution that costs it most."""

    channels: int = 128
    """Channels of the first level. The time embedding has 4 times as many."""

    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    """Channels of each level, as a multiple of `channels`. Each level halves the resolution of the last."""

    residual_blocks: int = 2
    """Residual blocks a level on the way down; one more on the way up."""

    attention_downsamples: tuple[int, ...] = (4,)
    """Levels with attention, by their downsampling: 4 is the level at a quarter of the first one's size."""

    heads: int = 8
    """Attention heads of every attention layer; ignored where `head_channels` is set."""

    head_channels: int | None = None
    """Channels of an attention head. Wider levels then have more heads."""

    dropout: float = 0.1
    """Dropout probability in front of the second convolution of a residual block."""

    scale_shift: bool = True
    """The embedding scales and shifts the normalised features of a residual block. False: it is added."""

    resample_in_block: bool = True
    """Resolution changes inside a residual block. False: by a strided or upsampling convolution."""

    num_clusters: int | None = None
    """Number of cluster ids K. None: the network is not guided by clusters."""

    num_attributes: int = 0
    """Length of the multi-hot attribute vector. 0: the network is not guided by attributes."""

    mask_channels: int = 0
    """Channels of the mask that is joined to the noisy image. 0: the network is not guided by a mask."""

    null_condition: Literal["zero", "learned"] = "zero"
    """Embedding of the null cluster: zeros, as in the paper's released code, or a trained row."""

    condition_merge: Literal["concatenate", "add"] = "concatenate"
    """How the embedded condition joins the time embedding."""

    context_tokens: int = 0
    """Tokens made of the time, and as many of the condition, that every attention layer attends to beside the
    pixels. 0: plain self-attention among the pixels."""

    context_channels: int = 32
    """Channels of a context token."""

    def __post_init__(self) -> None:
        for name in ("image_size", "in_channels", "out_channels", "patch_size", "channels", "residual_blocks", "heads"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("num_attributes", "mask_channels", "context_tokens"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("num_clusters", "head_channels"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "None or at least 1")
        self._require("channels", self.channels % 2 == 0, "even: half are sines, half cosines of the time")
        self._require("dropout", 0.0 <= self.dropout < 1.0, "in [0, 1)")
        self._require("channel_multipliers", min(self.channel_multipliers, default=0) >= 1, "at least 1 a level")
        self._require(
            "image_size",
            self.image_size % self.total_downsampling == 0,
            f"a multiple of {self.total_downsampling}",
        )
        self._require(
            "attention_downsamples",
            set(self.attention_downsamples) <= set(self.downsamples),
            f"among the downsamplings of the levels, {self.downsamples}",
        )
        divisor = "heads" if self.head_channels is None else "head_channels"
        for width in self.attention_widths:
            self._require(divisor, width % getattr(self, divisor) == 0, f"a divisor of {width} channels")
        self._require(
            "null_condition",
            self.null_condition == "zero" or self.num_clusters is not None,
            "zero without clusters",
        )

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"UNetConfig.{name} is {getattr(self, name)}; it must be {wanted}")

    @property
    def downsamples(self) -> tuple[int, ...]:
        """Downsampling of each level: 1, 2, 4, ..."""
        return tuple(2**level for level in range(len(self.channel_multipliers)))

    @property
    def total_downsampling(self) -> int:
        return self.patch_size * self.downsamples[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Channels of the layers with attention; the innermost always has it."""
        levels = zip(self.downsamples, self.widths, strict=True)
        return (
            *(width for downsample, width in levels if downsample in self.attention_downsamples),
            self.widths[-1],
        )

    def heads_of(self, width: int) -> int:
        """Attention heads of a layer of `width` channels."""
        return self.heads if self.head_channels is None else width // self.head_channels

    @property
    def has_vector_condition(self) -> bool:
        """Whether the network is guided by clusters or attributes."""
        return self.num_clusters is not None or self.num_attributes > 0

    @property
    def has_condition(self) -> bool:
        """Whether the network is guided by anything."""
        return self.has_vector_condition or self.mask_channels > 0
