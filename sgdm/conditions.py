"""What guides an image: its cluster id, its attributes and its mask, all of them optional."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """Guidance of a batch. A part that a network does not use is None, in every batch of a run.

    A NamedTuple, so that torch.compile sees a plain tuple of tensors.
    """

    cluster: Tensor | None = None
    """int64 [B], ids 0 .. K-1; the null condition is id K."""

    attributes: Tensor | None = None
    """float32 [B, A], multi-hot; the null condition is zeros."""

    mask: Tensor | None = None
    """float32 [B, M, H, W]; the null condition is zeros."""

    def drop(self, dropped: Tensor, num_clusters: int | None) -> Condition:
        """The null condition where `dropped` (bool [B]) is true: all parts of a sample go together."""
        return Condition(
            cluster=_drop_cluster(self.cluster, dropped, num_clusters),
            attributes=None if self.attributes is None else _zero_where(dropped, self.attributes),
            mask=None if self.mask is None else _zero_where(dropped, self.mask),
        )

    def null(self, num_clusters: int | None) -> Condition:
        """The null condition in the shape of this one."""
        return Condition(
            cluster=None if self.cluster is None else torch.full_like(self.cluster, _null_id(num_clusters)),
            attributes=None if self.attributes is None else torch.zeros_like(self.attributes),
            mask=None if self.mask is None else torch.zeros_like(self.mask),
        )

    def flip(self, flipped: Tensor) -> Condition:
        """Mirrored left to right where `flipped` (bool [B]) is true, as the image is (flip_images)."""
        return self._replace(mask=None if self.mask is None else flip_images(self.mask, flipped))

    def crop(self, top: int, left: int, height: int, width: int) -> Condition:
        """What is left where the image is cropped to rows top .. top + height, columns left .. left + width.

        Attributes become those that still have a pixel, where there is a channel of the mask for each of them.
        """
        if self.mask is None:
            return self
        mask = self.mask[:, :, top : top + height, left : left + width]
        attributes = self.attributes
        if attributes is not None and attributes.shape[1] == mask.shape[1]:
            attributes = mask.amax(dim=(2, 3)).to(attributes.dtype)
        return self._replace(attributes=attributes, mask=mask)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Condition:
        """The same condition on another device."""
        return Condition(*(None if part is None else part.to(device, non_blocking=non_blocking) for part in self))


def make_condition(cluster: Tensor | None, layout: Tensor | None, num_segments: int = 0) -> Condition | None:
    """The condition of drawn guides (sgdm.data.guides.Drawn), made on their device; None where nothing guides.

    cluster int64 [B]; layout uint8, either box masks [B, 1, H, W] or label maps [B, H, W] of the classes
    0 .. num_segments - 1, any other label being none: they become a channel a class, and the attributes say which
    classes there are.
    """
    if cluster is None and layout is None:
        return None
    if layout is None or layout.dim() == 4:
        return Condition(cluster=cluster, mask=None if layout is None else layout.float())
    classes = torch.arange(num_segments, device=layout.device, dtype=torch.uint8)
    mask = (layout[:, None] == classes[:, None, None]).float()
    return Condition(cluster=cluster, attributes=mask.amax(dim=(2, 3)), mask=mask)


def flip_images(images: Tensor, flipped: Tensor) -> Tensor:
    """[B, C, H, W], mirrored left to right where `flipped` (bool [B]) is true."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def concatenate(first: Condition, second: Condition) -> Condition:
    """Join two conditions of the same parts along the batch, as the doubled batch of guidance needs."""
    parts: list[Tensor | None] = []
    for name, a, b in zip(Condition._fields, first, second, strict=True):
        if (a is None) != (b is None):
            raise ValueError(
                f"only one of the two conditions has the part {name!r}; both need the same parts to be concatenated"
            )
        parts.append(None if a is None or b is None else torch.cat((a, b)))
    return Condition(*parts)


def _null_id(num_clusters: int | None) -> int:
    if num_clusters is None:
        raise ValueError("a condition with cluster ids needs num_clusters, whose value is the null id")
    return num_clusters


def _drop_cluster(cluster: Tensor | None, dropped: Tensor, num_clusters: int | None) -> Tensor | None:
    return None if cluster is None else cluster.masked_fill(dropped, _null_id(num_clusters))


def _zero_where(dropped: Tensor, part: Tensor) -> Tensor:
    return part.masked_fill(dropped.view(-1, *[1] * (part.dim() - 1)), 0.0)
