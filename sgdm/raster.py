"""Annotations to condition tensors: boxes, polygons, run lengths, masks and label maps, in C++ (csrc/).

Each function draws a batch of annotations (sgdm.ragged) into a tensor of the caller's, pinned or not, and returns it.
A batch is images of the annotations by number (`images`, int64 [B]; without it all of them in order), each through
its view. `threads` are kept between calls; the bytes do not depend on their number. ValueError names image, object
and value of input that is not valid, objects counted from 0 in each image; what the tensor holds then is not defined.

Pixels are half-open: pixel k covers [k, k + 1), its centre is k + 0.5.
- Boxes and polygons are moved into the target grid and filled there by COCO's rule, bit for bit as pycocotools: edges
  snap to fifths of a pixel, and a pixel is inside if its centre is (even-odd). Integer boxes equal NumPy slices.
- Run lengths, masks and label maps are sampled: target pixel i of n shows source pixel
  floor(x0 + (2 i + 1) (x1 - x0) / (2 n)) of the crop from x0 to x1; for whole images ((2 i + 1) size) // (2 n).
  A flipped view shows target pixel n - 1 - i.
- With sampling "pil_nearest" these show what Pillow's crop and resize(NEAREST) show, which differs for some sizes, and
  boxes are filled in the source and sampled likewise: the masks of the released SGDM code. Not for polygons.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

import sgdm._raster as _raster
from sgdm.ragged import LabelMaps, Objects, RunLengths, Views, exact_array

Overlap = Literal["last", "first", "largest-last", "multi-hot"]
"""Which object shows where several are: the later one, the earlier one, the one with more pixels in the output (of
equals the later), or, in channels, each of them."""


def rasterize_labels(
    annotations: Objects | LabelMaps,
    views: Views,
    out: Tensor,
    *,
    num_classes: int,
    background: int = 255,
    overlap: Overlap = "last",
    images: ArrayLike | None = None,
    threads: int = 1,
) -> Tensor:
    """Label maps: out, uint8 [B, H, W], becomes the class of each pixel, `background` where there is none."""
    tensor = _tensor(out, torch.uint8)
    return _rasterize(
        annotations, views, out, _raster.labels_output(tensor, num_classes, background), overlap, images, threads
    )


def rasterize_channels(
    annotations: Objects | LabelMaps,
    views: Views,
    out: Tensor,
    *,
    overlap: Overlap = "last",
    images: ArrayLike | None = None,
    threads: int = 1,
) -> Tensor:
    """One-hot, or with overlap "multi-hot" multi-hot: out, uint8 or bfloat16 [B, K, H, W], also in channels_last."""
    output = _raster.channels_output(_tensor(out, torch.uint8, torch.bfloat16))
    return _rasterize(annotations, views, out, output, overlap, images, threads)


def rasterize_mask(
    annotations: Objects | LabelMaps, views: Views, out: Tensor, *, images: ArrayLike | None = None, threads: int = 1
) -> Tensor:
    """One mask an image: out, uint8 or bfloat16 [B, 1, H, W], becomes 1 where any object is, whatever its class."""
    output = _raster.mask_output(_tensor(out, torch.uint8, torch.bfloat16))
    return _rasterize(annotations, views, out, output, "last", images, threads)


def rasterize_presence(
    annotations: Objects | LabelMaps,
    views: Views,
    out: Tensor,
    *,
    size: tuple[int, int],
    images: ArrayLike | None = None,
    threads: int = 1,
) -> Tensor:
    """out, uint8 or bfloat16 [B, K], becomes 1 for each class with a pixel in the view at `size` (height, width).

    Hidden objects count: it is the multi-hot channels' maximum over their pixels.
    """
    output = _raster.presence_output(_tensor(out, torch.uint8, torch.bfloat16), *size)
    return _rasterize(annotations, views, out, output, "last", images, threads)


def encode(objects: Objects, views: Views, *, size: tuple[int, int], images: ArrayLike | None = None) -> RunLengths:
    """Every object by itself as run lengths of its view at `size` (height, width), compressed, byte for byte COCO's.

    Makes polygons and masks of a source into segments of the stored image, and annotations of one kind of several.
    """
    numbers = _numbers(objects, images)
    values, offsets = _raster.encode(objects.annotations(), views.batch(numbers), *size)
    counts = objects.image_offsets[numbers + 1] - objects.image_offsets[numbers]
    class_ids = [objects.class_ids[objects.image_offsets[n] : objects.image_offsets[n + 1]] for n in numbers]
    return RunLengths(
        values=values,
        offsets=offsets,
        sizes=np.tile(np.array(size), (len(offsets) - 1, 1)),
        image_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        class_ids=np.concatenate([np.zeros(0, np.int32), *class_ids]),
    )


def _rasterize(
    annotations: Objects | LabelMaps,
    views: Views,
    out: Tensor,
    output: _raster.Output,
    overlap: Overlap,
    images: ArrayLike | None,
    threads: int,
) -> Tensor:
    if threads < 1:
        raise ValueError(f"threads {threads} is not possible: choose 1 or more")
    batch = views.batch(_numbers(annotations, images))
    _raster.rasterize(annotations.annotations(), batch, output, overlap, threads)
    return out


def _numbers(annotations: Objects | LabelMaps, images: ArrayLike | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    if images is None:
        return np.arange(annotations.num_images)
    return exact_array("images", images, np.int64)


def _tensor(out: Tensor, *dtypes: torch.dtype) -> _raster.Tensor:
    """Where `out` is, for C++ to check and to write."""
    if out.device.type != "cpu" or out.layout != torch.strided or out.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"out must be a dense {names} tensor on the CPU, got {out.dtype} on {out.device}")
    item_size = out.element_size()
    memory = out.untyped_storage().nbytes() - int(out.storage_offset()) * item_size
    return _raster.Tensor(out.data_ptr(), item_size, memory, list(out.shape), list(out.stride()))
