"""STEGO: segments by a small network over frozen patch features, trained without labels (stego_loss).

Hamilton et al., Unsupervised Semantic Segmentation by Distilling Feature Correspondences, ICLR 2022, arXiv 2203.08414.
A head turns features into codes, which lie close together where features are merely alike, and a probe, a k-means
that learns beside it, tells classes of codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sgdm.annotate.fit import fit, step_generator
from sgdm.annotate.patches import PatchEncoder
from sgdm.annotate.segments import SHARPNESS
from sgdm.annotate.selfsup import Images
from sgdm.annotate.selfsup.sample import LARGEST_SAMPLE
from sgdm.annotate.spectral import nearest_neighbours
from sgdm.annotate.stego_loss import OfPairs, Pair, distillation_loss, measured_shifts, sample_pairs, unit
from sgdm.files import atomic_write
from sgdm.progress import Advance, ignore

CODE = 70  # numbers in a code
DROPPED = 0.1  # share of the features' channels, in training
BATCH = 64
POINTS = 11 * 11  # places of an image that a step compares
NEIGHBOURS = 7
LEARNING_RATE = 5e-4
PROBE_LEARNING_RATE = 5e-3
WEIGHTS = OfPairs(same=0.67, neighbour=0.25, random=0.63)
SHARES = OfPairs(same=0.75, neighbour=0.7, random=0.6)
"""Of pairs of places that attract: about as many as show the same where a background covers most of each image."""

MEASURED = 256  # images whose pairs tell the shifts
CACHE = 2 << 30  # bytes of features that training keeps
ENCODING_BATCH = 64
COLLAPSED = 0.995  # share of all patches in one class


class StegoHead(nn.Module):
    """Features float [B, D, h, w] -> codes [B, 70, h, w]: a linear map, and one with a hidden layer added to it."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(dimension, CODE, 1)
        self.nonlinear = nn.Sequential(nn.Conv2d(dimension, dimension, 1), nn.ReLU(), nn.Conv2d(dimension, CODE, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features) + self.nonlinear(features)


class ClusterProbe(nn.Module):
    """Codes [B, C, h, w] -> their cosines [B, K, h, w] with the centroids of K classes."""

    def __init__(self, num_segments: int) -> None:
        super().__init__()
        self.centroids = nn.Parameter(torch.randn(num_segments, CODE))

    def forward(self, codes: Tensor) -> Tensor:
        return torch.einsum("bchw,kc->bkhw", unit(codes), unit(self.centroids))


class StegoNetwork(nn.Module):
    """Head and probe. They learn together, the probe from the codes of the head, the head nothing of the probe."""

    def __init__(self, dimension: int, num_segments: int) -> None:
        super().__init__()
        self.head = StegoHead(dimension)
        self.probe = ClusterProbe(num_segments)


class Stego:
    """Segments of images by a trained network over the features of a frozen encoder."""

    def __init__(self, encoder: PatchEncoder, network: StegoNetwork) -> None:
        self.encoder = encoder
        self.network = network.eval().requires_grad_(False)
        self.num_segments = len(network.probe.centroids)
        self.digest = hashlib.sha256(_origin(encoder).encode() + save(_tensors(network))).hexdigest()

    @torch.inference_mode()
    def scores(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """float32 [B, K, *size] on the encoder's device: log-probabilities of classes, by cosines of codes with them.

        A code is the mean of those of an image and of the mirrored image, bilinearly between the patches around it.
        """
        codes = self._codes(images) + self._codes(images.flip(3)).flip(3)
        pixels = F.interpolate(codes, size, mode="bilinear")
        return F.log_softmax(SHARPNESS * self.network.probe(pixels), dim=1)

    def _codes(self, images: Tensor) -> Tensor:
        return self.network.head(self.encoder(images))


def train_stego(
    encoder: PatchEncoder,
    images: Images,
    *,
    num_segments: int,
    seed: int,
    images_budget: int,
    neighbours: int = NEIGHBOURS,
    weights: OfPairs[float] = WEIGHTS,
    shifts: OfPairs[float] | None = None,
    shares: OfPairs[float] = SHARES,
    embed: Callable[[Tensor], Tensor] | None = None,
    checkpoint: Path | None = None,
    advance: Advance = ignore,
) -> Stego:
    """Trains STEGO on `images` (uint8 [N, 3, H, W], H and W any), of which `images_budget` are seen in all.

    Without `shifts`, those are measured that let these `shares` of the pairs of places attract: fewer make segments
    smaller and more alike in size. `embed` gives features of whole images, uint8 [B, 3, H, W] -> [B, E], to find
    neighbours by, as an Encoder does. Without it they are the means of the patches, as in the paper; ConvNetPatches
    takes these out of each image, so give it.

    Each image is encoded once, and as many features as CACHE holds are kept in half precision on the encoder's device:
    budgets are many times the number of images, and a step would else encode two images for each that it sees. Other
    images are left out, at random. What is kept is encoded anew where a killed training goes on from `checkpoint`.
    The same seed and number of threads give the same result. ValueError where there are too few images, and where all
    patches end in one class.
    """
    if len(images) <= neighbours:
        raise ValueError(f"{len(images)} images do not have {neighbours} neighbours each: give more images")
    features, embeddings = _encode(encoder, images, embed, seed)
    device, count = features.device, len(features)
    near = torch.from_numpy(nearest_neighbours(embeddings, neighbours)).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # made on the CPU: the generators of devices stay as they are
        network = StegoNetwork(features.shape[1], num_segments).to(device)
    batch = min(BATCH, count)

    def draw(size: int, generator: torch.Generator) -> tuple[Tensor, Pair]:
        """Features of `size` images and then of a neighbour of each, and the places where they are compared."""
        rows = torch.randperm(count, generator=generator, device=device)[:size]
        chosen = torch.randint(neighbours, (size,), generator=generator, device=device)
        places = 2 * torch.rand(2, size, POINTS, 2, generator=generator, device=device) - 1
        return features[torch.cat([rows, near[rows, chosen]])].float(), (places[0], places[1])

    measured = draw(min(MEASURED, count), step_generator(seed, -1, device))
    thresholds = shifts or measured_shifts(sample_pairs(*measured), shares)

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        maps, places = draw(batch, generator)
        codes = network.head(drop_channels(maps, generator))
        distilled = distillation_loss(sample_pairs(maps, places), sample_pairs(codes, places), thresholds, weights)
        return distilled - network.probe(codes.detach()).amax(dim=1).mean()

    fit(
        network,
        loss_of,
        steps=max(1, images_budget // batch),
        batch=batch,
        learning_rate=LEARNING_RATE,
        learning_rates={"probe": PROBE_LEARNING_RATE},
        weight_decay=0.0,
        seed=seed,
        checkpoint=checkpoint,
        advance=advance,
    )
    _refuse_collapse(network, features)
    return Stego(encoder, network)


def drop_channels(features: Tensor, generator: torch.Generator) -> Tensor:
    """[B, D, h, w] without a tenth of the channels of each image, the others enlarged to make up for it."""
    kept = torch.rand(*features.shape[:2], 1, 1, generator=generator, device=features.device) >= DROPPED
    return features * kept / (1 - DROPPED)


def save_stego(stego: Stego, path: Path) -> None:
    """Writes the network as safetensors, from which load_stego makes it again."""
    with atomic_write(path) as temporary:
        save_file(_tensors(stego.network), temporary, metadata={"stego over": _origin(stego.encoder)})


def load_stego(path: Path, encoder: PatchEncoder, device: torch.device) -> Stego:
    """What save_stego wrote; ValueError where the file is missing, damaged, or was trained over other features."""
    try:
        with safe_open(path, framework="pt") as file:
            origin = (file.metadata() or {})["stego over"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
        network = StegoNetwork(tensors["head.linear.weight"].shape[1], len(tensors["probe.centroids"]))
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds no STEGO of ours ({reason}); train it again") from error
    if origin != _origin(encoder):
        raise ValueError(f"{path} was trained over {origin}, not over {_origin(encoder)}; train it again")
    return Stego(encoder, network.to(device))


def _encode(
    encoder: PatchEncoder, images: Images, embed: Callable[[Tensor], Tensor] | None, seed: int
) -> tuple[Tensor, np.ndarray]:
    """Of random images, float16 [M, D, h, w] on the encoder's device, and of each as a whole float32 [M, E]."""
    one = encoder(torch.as_tensor(images[np.arange(1)]))
    count = min(len(images), LARGEST_SAMPLE, CACHE // (2 * one.numel()))
    rows = np.random.default_rng(seed).permutation(len(images))[:count]
    features = torch.empty(count, *one.shape[1:], dtype=torch.float16, device=one.device)
    embeddings = []
    for start in range(0, count, ENCODING_BATCH):
        batch = torch.as_tensor(images[rows[start : start + ENCODING_BATCH]])
        maps = encoder(batch)
        features[start : start + len(maps)] = maps
        embeddings.append((maps.mean(dim=(2, 3)) if embed is None else embed(batch)).float().cpu().numpy())
    return features, np.concatenate(embeddings)


def _refuse_collapse(network: StegoNetwork, features: Tensor) -> None:
    num_segments = len(network.probe.centroids)
    with torch.inference_mode():
        found = torch.cat(
            [network.probe(network.head(maps.float())).argmax(dim=1) for maps in features.split(ENCODING_BATCH)]
        )
    largest = float(found.flatten().bincount(minlength=num_segments).max() / found.numel())
    if num_segments > 1 and largest > COLLAPSED:
        raise ValueError(
            f"{largest:.1%} of all patches ended in one of {num_segments} segments: let fewer pairs of places attract "
            "(lower shares, higher shifts), or give images or an encoder with more to tell apart"
        )


def _origin(encoder: PatchEncoder) -> str:
    return f"{encoder.name} ({encoder.digest})"


def _tensors(network: StegoNetwork) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
