"""Principal components of pixels, half whitened: the encoder that needs no training."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdm.annotate.selfsup.encoder import Images, OwnEncoder, centred
from sgdm.annotate.selfsup.networks import WhitenedPixels
from sgdm.annotate.selfsup.sample import draw_sample, seeded

WHITENING_SAMPLE = 10_000  # images: enough for principal components
HALF = 0.5  # of the way from plain to white principal components: purer clusters than at either end
OVERSAMPLING = 32  # of directions in the randomised decomposition


def fit_whitened_pixels(
    images: Images, *, seed: int, device: torch.device, dimension: int = 128, whitening: float = HALF
) -> OwnEncoder:
    """The encoder `pixels`: principal components of at most 10,000 of the `images` (uint8 [N, 3, H, W]).

    A component of variance v is scaled to v ** (1 - whitening): 0 keeps plain components, 1 gives each of them the
    variance one. Dimensions that the images do not have are left out.
    """
    return OwnEncoder(whitened_pixels(draw_sample(images, seed).to(device), dimension, seed, whitening), None, device)


def whitened_pixels(sample: Tensor, dimension: int, seed: int, whitening: float = HALF) -> WhitenedPixels:
    """The network of `fit_whitened_pixels`, from uint8 [N, 3, 32, 32]; on the sample's device."""
    sample = sample[:WHITENING_SAMPLE]
    pixels = centred(sample).flatten(1)
    mean = pixels.mean(dim=0)
    with seeded(seed, sample.device):
        rank = min(dimension + OVERSAMPLING, *pixels.shape)
        _, singular, directions = torch.svd_lowrank(pixels - mean, q=rank, niter=2)
        variance = singular[:dimension].square() / (len(pixels) - 1)
        kept = variance > 1e-6 * variance.sum()
        network = WhitenedPixels(int(kept.sum())).to(sample.device)
    weight = directions[:, :dimension][:, kept].T * (variance[kept] ** (-whitening / 2))[:, None]
    with torch.no_grad():
        network.project.weight.copy_(weight)
        network.project.bias.copy_(-weight @ mean)
    return network.eval().requires_grad_(False)
