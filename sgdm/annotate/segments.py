"""Segments of images from dense features alone: what tells them, how they are kept, and how far they agree with truth.

The plain way is spherical k-means of patches, every pixel in the class of its own. sgdm.annotate.regions and
sgdm.annotate.stego are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.clusters import SMALLEST_SAMPLE, fit_centroids
from sgdm.annotate.feature_rows import unit_rows
from sgdm.annotate.patches import PatchEncoder
from sgdm.ragged import Masks, RunLengths, Views
from sgdm.raster import encode

SAMPLE = SMALLEST_SAMPLE  # patches that classes are fitted on
SHARPNESS = 2.0  # of the softmax over cosines, as STEGO gives it to the CRF
TINY = 1e-12


class Segmenter(Protocol):
    """Tells the classes of pixels."""

    def scores(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """float32 [B, K, *size]: logarithms of the probabilities of classes, of uint8 images [B, 3, H, W]."""
        ...


def fit_segments(patches: np.ndarray, num_segments: int, *, seed: int, iterations: int = 30) -> np.ndarray:
    """float32 [K, D], of unit length: the classes of float32 `patches` [M, D], as sample_patches gives them."""
    return fit_centroids(unit_rows(patches, slice(None)), num_segments, seed=seed, iterations=iterations)


def sample_patches(encoder: PatchEncoder, images: Iterable[Tensor], count: int, seed: int) -> np.ndarray:
    """float32 [M, D]: 65,536 patches, or a few more, of `count` images (uint8 batches), as many of each, at random.

    All patches where the images have fewer. ValueError where there are no images.
    """
    random = np.random.default_rng(seed)
    size = encoder.grid[0] * encoder.grid[1]
    kept = min(size, -(-SAMPLE // max(count, 1)))
    samples = []
    for batch in images:
        rows = encoder(batch).flatten(2).transpose(1, 2)
        chosen = np.argsort(random.random((len(rows), size)), axis=1)[:, :kept]
        index = torch.from_numpy(chosen).to(rows.device)[:, :, None].expand(-1, -1, rows.shape[2])
        samples.append(rows.gather(1, index).flatten(0, 1).cpu().numpy())
    if not samples:
        raise ValueError("there are no images to find segments in")
    return np.concatenate(samples)


class PatchClasses:
    """Classes of patches, as fit_segments makes them.

    The cosine of a pixel with a class is that of its feature, bilinearly between the patches around it. So borders of
    classes run between patches where the features say, not along them, as they would if labels were enlarged.
    """

    def __init__(self, encoder: PatchEncoder, centroids: Tensor) -> None:
        """centroids: float32 [K, D], of unit length, on the encoder's device."""
        self._encoder = encoder
        self._centroids = centroids

    @torch.inference_mode()
    def scores(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        features = self._encoder(images)
        # Linear, and so taken at the patches and then interpolated: as if the features were, at a fraction of the work.
        products = F.interpolate(torch.einsum("bdhw,kd->bkhw", features, self._centroids), size, mode="bilinear")
        length = F.interpolate(features.norm(dim=1, keepdim=True), size, mode="bilinear")
        return F.log_softmax(SHARPNESS * products / length.clamp_min(TINY), dim=1)


def segments_of(labels: np.ndarray) -> RunLengths:
    """Label maps, integers [B, H, W], as one compressed segment an image and class that it shows, classes ascending."""
    shown = [np.unique(image).tolist() for image in labels]
    masks = Masks.of([[image == k for k in classes] for image, classes in zip(labels, shown, strict=True)], shown)
    size = labels.shape[1], labels.shape[2]
    return encode(masks, Views.of(np.tile(size, (len(labels), 1))), size=size)


def concatenate(parts: Sequence[RunLengths]) -> RunLengths:
    """The images of all parts, one part after another."""
    return RunLengths(
        values=np.concatenate([part.values for part in parts]),
        offsets=_joined([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        image_offsets=_joined([part.image_offsets for part in parts]),
        class_ids=np.concatenate([part.class_ids for part in parts]),
    )


def segment_agreement(confusion: np.ndarray) -> tuple[float, float]:
    """Mean IoU over true classes, and pixel accuracy, of int [K, C]: pixels of each class found and each true one.

    Each found class stands for at most one true class, those pairs that agree in the most pixels together (Hungarian
    method, the measure of STEGO). A true class without a partner has IoU 0; one without a pixel does not count.
    """
    found, true = linear_sum_assignment(confusion, maximize=True)
    shared = confusion[found, true]
    union = confusion.sum(axis=1)[found] + confusion.sum(axis=0)[true] - shared
    overlap = np.zeros(confusion.shape[1])
    overlap[true] = shared / np.maximum(union, 1)
    return float(overlap[confusion.sum(axis=0) > 0].mean()), float(shared.sum() / confusion.sum())


def _joined(offsets: Sequence[np.ndarray]) -> np.ndarray:
    counts = np.concatenate([np.diff(part) for part in offsets])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
