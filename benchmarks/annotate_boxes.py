"""Case of sgdm.annotate.boxes: LOST in the dense features of a batch, of smooth noise, at the grids of its encoders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import reference_boxes
from benchmarks.comparison import Comparison, Step
from sgdm.annotate.boxes import find_boxes
from sgdm.annotate.lost import EXPANSION

DIMENSION = 384  # of DINO's ViT-S
GRIDS = ((14, 14), (16, 48), (28, 28))
SMOOTHING = 5  # patches


def boxes(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """The batch at once, and image by image: the reference on the CPU, and what one writes in PyTorch."""
    images = 4 if quick else 256
    for h, w in GRIDS[:1] if quick else GRIDS:
        features = smooth_noise(images, h, w, device)
        yield Comparison(
            f"{images} images of {h}x{w} patches of {DIMENSION} numbers",
            {
                "NumPy, by image": partial(_by_numpy, features),
                "PyTorch, by image": partial(_by_torch, features),
                "sgdm": partial(_in_a_batch, features),
            },
            device,
            bytes=features.nbytes,
            flops=2 * images * (h * w) ** 2 * DIMENSION,  # of all inner products; by symmetry half would do
            images=images,
        )


def smooth_noise(images: int, h: int, w: int, device: torch.device) -> Tensor:
    """float32 [images, DIMENSION, h, w], of zero mean over each image, as an encoder's are about."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images, DIMENSION, h + SMOOTHING - 1, w + SMOOTHING - 1, generator=generator)
    features = F.avg_pool2d(noise, SMOOTHING, stride=1)
    return (features - features.mean(dim=(2, 3), keepdim=True)).to(device)


def _in_a_batch(features: Tensor) -> Step:
    return lambda: find_boxes(features).corners


def _by_numpy(features: Tensor) -> Step:
    arrays = features.cpu().numpy()
    find = reference_boxes.lost(EXPANSION, features[0, 0].numel())
    return lambda: [reference_boxes.find_boxes(image, find)[0] for image in arrays]


def _by_torch(features: Tensor) -> Step:
    return lambda: [_box(image) for image in features]


def _box(features: Tensor) -> list[float]:
    _, h, w = features.shape
    rows = features.flatten(1).T
    similarity = rows @ rows.T
    rarest = (similarity > 0).sum(dim=1).sort(stable=True).indices
    seed = rarest[0]
    candidates = rarest[: max(1, round(EXPANSION * h * w))]
    expanded = candidates[similarity[seed, candidates] > 0]
    mask = similarity[expanded].sum(dim=0) > 0
    part = reference_boxes.connected_part(mask.view(h, w).cpu().numpy(), int(seed))
    return reference_boxes.box_around(part)
