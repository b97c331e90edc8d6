"""Segments of images by regions: each image is cut into regions, and those alike over all images are of one class.

No network is trained. An image's regions are its objects, one after another (sgdm.annotate.objects), and what is left
of it. sgdm.annotate.segments.fit_segments makes classes of the mean features of the regions of all images, and every
pixel is of the class of its region. So a class is of whole things, which k-means of patches takes apart. What is left
of an image is a region as any other: its class is one of backgrounds.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.names import BoxFinder
from sgdm.annotate.objects import find_objects
from sgdm.annotate.patches import PatchEncoder

OBJECTS = 3  # at most, of an image
UNLIKELY = 1e-3  # probability of a class of which no region around a pixel is


def cut_into_regions(features: Tensor, method: BoxFinder) -> Tensor:
    """bool [B, R, h, w]: each patch of [B, D, h, w] in one of R regions, the objects and the rest, which is the last.

    Regions that an image does not have are empty.
    """
    objects = find_objects(features, method, OBJECTS)
    return torch.cat([objects, ~objects.any(dim=1, keepdim=True)], dim=1)


def sample_regions(where: PatchEncoder, what: PatchEncoder, images: Iterable[Tensor], method: BoxFinder) -> np.ndarray:
    """float32 [M, D]: the features of all regions of `images`, uint8 batches. ValueError where there are no images.

    Objects are found in the features of `where`, the encoder's for boxes. The features are those of `what`, the same
    encoder's for segments.
    """
    samples = []
    for batch in images:
        masks = cut_into_regions(where(batch), method)
        samples.append(mean_features(what(batch), masks)[masks.flatten(2).any(dim=2)].cpu().numpy())
    if not samples:
        raise ValueError("there are no images to find segments in")
    return np.concatenate(samples)


class RegionClasses:
    """Classes of regions. A region's is that of the centroid with the largest cosine to its feature; a pixel is of the
    regions that the patches around it are of, bilinearly, so that borders are smooth."""

    def __init__(self, where: PatchEncoder, what: PatchEncoder, method: BoxFinder, centroids: Tensor) -> None:
        """`where` and `what` as of sample_regions; centroids: float32 [K, D], of unit length, on their device."""
        self._where, self._what, self._method = where, what, method
        self._centroids = centroids

    @torch.inference_mode()
    def scores(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """float32 [B, K, *size]: logarithms of the probabilities of classes, of uint8 images [B, 3, H, W]."""
        masks = cut_into_regions(self._where(images), self._method)
        products = torch.einsum("brd,kd->brk", mean_features(self._what(images), masks), self._centroids)
        classes = F.one_hot(products.argmax(dim=2), len(self._centroids)).float()
        members = F.interpolate(masks.float(), size, mode="bilinear")
        return torch.einsum("brhw,brk->bkhw", members, classes).clamp_min(UNLIKELY).log()


def mean_features(features: Tensor, masks: Tensor) -> Tensor:
    """[B, R, D]: the mean over each region's patches, each first brought to unit length; 0 of an empty region."""
    members = masks.flatten(2).to(features.dtype)
    total = members @ F.normalize(features, dim=1).flatten(2).mT
    return total / members.sum(dim=2, keepdim=True).clamp_min(1)
