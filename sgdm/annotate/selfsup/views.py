"""Random views of a batch of images, made on their device, from an explicit generator.

No view is mirrored: letters, digits and shoes that point left are other things than those that point right, and
clusters guide a network that may be asked for either. None is blurred: SimCLR did not blur images this small either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ASPECT = 4 / 3  # of a crop, at most, wide or high
CHANGE = 0.4  # of saturation, contrast and brightness, at most, either way
GREY = 0.2  # share of views without colour
TURN = 0.1 * 2 * math.pi  # of all hues, at most, either way


def near_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Views of float [B, 3, H, W] in [-1, 1]: up to 6 % of shift, 10 % of scale, 30 % of contrast, a square hidden."""
    B, _, H, W = images.shape
    uniform = _Uniform(generator)
    zoom = 1 + 0.1 * uniform(B)
    sides = torch.stack([zoom, zoom * (1 + 0.1 * uniform(B))], dim=1)
    views = _look(images, sides, centres=0.12 * uniform(B, 2), size=(H, W))  # of half the width
    views = views * (1 + 0.3 * uniform(B, 1, 1, 1)) + 0.1 * uniform(B, 1, 1, 1)
    centre, half = uniform(B, 2, 1), 0.3 * uniform(B, 1).abs()
    beside = (torch.linspace(-1, 1, W, device=images.device) - centre[:, 0]).abs() < half
    above = (torch.linspace(-1, 1, H, device=images.device) - centre[:, 1]).abs() < half
    return views.masked_fill((above[:, :, None] & beside[:, None, :])[:, None], 0.0)


def far_views(images: Tensor, generator: torch.Generator, *, size: int, area: tuple[float, float]) -> Tensor:
    """Views of float [B, 3, H, W] in [-1, 1]: random_crops in other colours, float [B, 3, size, size]."""
    return recoloured(random_crops(images, generator, size=size, area=area), generator)


def random_crops(images: Tensor, generator: torch.Generator, *, size: int, area: tuple[float, float]) -> Tensor:
    """A part of each image: of a share of its area between the two of `area`, up to 4 / 3 as wide as high or as high
    as wide, anywhere in it, at `size` x `size` pixels. Meant for enlarging: what is made smaller is not filtered first.
    """
    uniform = _Uniform(generator)
    least, most = area
    shares = least + (most - least) * (uniform(len(images)) + 1) / 2
    aspects = (ASPECT ** uniform(len(images))).clamp(shares, 1 / shares)  # else a part would not lie in its image
    sides = torch.stack([shares * aspects, shares / aspects], dim=1).sqrt()
    return _look(images, sides, centres=(1 - sides) * uniform(len(images), 2), size=(size, size))


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image's colours turned by up to a tenth of all hues; saturation, contrast and brightness changed by up to
    40 %; a fifth of the images grey. Colours may leave [-1, 1].
    """
    B = len(images)
    uniform = _Uniform(generator)
    saturation = (1 + CHANGE * uniform(B)) * (uniform(B) > 2 * GREY - 1)
    colours = (1 + CHANGE * uniform(B, 1, 1)) * _turned_colours(TURN * uniform(B), saturation)
    return torch.einsum("bij,bjhw->bihw", colours, images) + CHANGE * uniform(B, 1, 1, 1)


class _Uniform:
    """Numbers between -1 and 1."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, *shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=self._generator, device=self._generator.device) - 1


def _look(images: Tensor, sides: Tensor, centres: Tensor, size: tuple[int, int]) -> Tensor:
    """What is seen of each image in a frame of `sides` around `centres`, float [B, 2], x and y in half widths."""
    frames = torch.cat([torch.diag_embed(sides), centres[:, :, None]], dim=2)
    grid = F.affine_grid(frames, [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _turned_colours(angles: Tensor, saturation: Tensor) -> Tensor:
    """float [B, 3, 3]: linear maps of RGB that turn it around the axis of greys and scale its distance from that."""
    grey = torch.full((3, 3), 1 / 3, device=angles.device)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angles.device) / math.sqrt(3)
    angles, saturation = angles[:, None, None], saturation[:, None, None]
    away = torch.eye(3, device=angles.device) - grey
    return grey + saturation * (angles.cos() * away + angles.sin() * across)
