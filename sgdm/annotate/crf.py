"""Label maps that follow the colours of their images: the fully connected CRF by the package pydensecrf2.

Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NIPS 2011,
arXiv 1210.5644. Neighbours want one class (equation 3, second kernel), and so do places of one colour (first kernel).
"""

from __future__ import annotations

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

ITERATIONS = 10
SMOOTH_WEIGHT = 3.0
SMOOTH_PIXELS = 1.0  # standard deviation
COLOUR_WEIGHT = 4.0
COLOUR_REACH = 67 / 320  # standard deviation of the distance, in widths of the image: 67 pixels of STEGO's 320
COLOUR_DEVIATION = 13.0  # of the distance of colours from 0 to 255; STEGO's 3 was worse on drawings of 64 pixels


def refine(images: Tensor, log_probabilities: Tensor) -> Tensor:
    """int64 [B, H, W] on the CPU: the class of each pixel of uint8 images [B, 3, H, W].

    log_probabilities: float [B, K, H, W], of classes, as Stego.scores gives them. Weights are STEGO's, as is the
    reach of colours, in proportion to the larger side. As many images are refined at once as there are cores, each
    the same in any company. ValueError where sizes do not agree, and where the extra `crf` is not installed.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are uint8 [B, 3, H, W]; these are {images.dtype} {list(images.shape)}")
    B, _, H, W = images.shape
    if log_probabilities.ndim != 4 or log_probabilities.shape[0::2] != (B, H) or log_probabilities.shape[3] != W:
        raise ValueError(
            f"log_probabilities {list(log_probabilities.shape)} are not [B, K, H, W] of images {list(images.shape)}: "
            "take scores at the size of the images"
        )
    densecrf = _densecrf()
    pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    energies = -log_probabilities.flatten(2).float().contiguous().cpu().numpy()
    labels = np.empty((B, H, W), np.int64)

    def refine_one(number: int) -> None:
        crf = densecrf.DenseCRF2D(W, H, energies.shape[1])
        crf.setUnaryEnergy(energies[number])
        crf.addPairwiseGaussian(sxy=SMOOTH_PIXELS, compat=SMOOTH_WEIGHT)
        crf.addPairwiseBilateral(
            sxy=COLOUR_REACH * max(H, W), srgb=COLOUR_DEVIATION, rgbim=pixels[number], compat=COLOUR_WEIGHT
        )
        labels[number] = np.argmax(crf.inference(ITERATIONS), axis=0).reshape(H, W)

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # the package lets go of the interpreter's lock
        for _ in threads.map(refine_one, range(B)):
            pass
    return torch.from_numpy(labels)


def _densecrf() -> ModuleType:
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise ValueError(
            "the dense CRF is that of the package pydensecrf2: install the extra `crf` "
            f"(pip install pydensecrf2), or go without it ({error})"
        ) from error
