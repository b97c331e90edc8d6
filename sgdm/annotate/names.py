"""Choices of annotation by name, apart from what makes them, so that a configuration needs no network library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Objective = Literal["neighbours", "dino", "simclr", "vicreg"]
"""What an own encoder learns from, see sgdm/annotate/selfsup."""
Network = Literal["convnet", "vit"]

Control = Literal["random", "labels", "split-labels"]
"""Clusters that are not found, see sgdm/annotate/controls.py."""
CONTROLS: tuple[Control, ...] = get_args(Control)
ClusterMethod = Literal["k-means", "temi", "random", "labels", "split-labels"]

BoxFinder = Literal["lost", "normalised-cut"]
"""See sgdm/annotate/objects.py."""
BOX_FINDERS: tuple[BoxFinder, ...] = get_args(BoxFinder)
SegmentFinder = Literal["k-means", "lost", "normalised-cut", "stego"]

Token = Literal["pooled", "class", "mean"]
Part = Literal["tokens", "queries", "keys", "values"]


@dataclass(frozen=True, kw_only=True)
class FeatureChoice:
    """Which of a timm backbone's features."""

    token: Token = "pooled"
    """An image's feature: `pooled`, as the backbone pools its last layer (the class token of DINO); or of any layer and
    part the `class` token or the `mean` over the patches. Boxes and segments are found in the patches themselves."""
    layer: int = -1
    """Block of a transformer, stage of a convolutional network; negative numbers count from the last."""
    part: Literal["auto", "tokens", "queries", "keys", "values"] = "auto"
    """What of the layer: its output `tokens`, or the `queries`, `keys` or `values` of its attention. `auto`: keys for
    boxes, which LOST found best, and tokens for all else."""
    input_size: int | None = None
    """Side in pixels that images are resized to; none: that of the backbone's own training."""

    def __post_init__(self) -> None:
        if self.input_size is not None and self.input_size < 8:
            raise ValueError(f"input_size is {self.input_size}: give at least 8 pixels")
        if self.token == "pooled" and self.part not in ("auto", "tokens"):
            raise ValueError(f"there are no pooled {self.part}: give token class or mean")

    def of(self, what: Literal["images", "boxes", "segments"]) -> Part:
        """The part that is meant, also where it is auto."""
        if self.part != "auto":
            return self.part
        return "keys" if what == "boxes" else "tokens"
