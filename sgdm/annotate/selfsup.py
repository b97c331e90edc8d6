"""Encoders made of nothing but the user's own images, for when no pretrained backbone is at hand.

`fit_whitened_pixels` is a linear map. `train_encoder` is a small ConvNet that learns, from shifted, scaled and
partly hidden images, where each image lies in the commute-time embedding of the images' nearest neighbours. The
neighbours make it group images, and what the ConvNet cannot tell apart after a shift it brings together. The
nearest neighbours are those of whitened pixels at first, and later those that the ConvNet itself finds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sgdm.annotate.spectral import commute_time_embedding, nearest_neighbours
from sgdm.files import atomic_write
from sgdm.progress import Advance, ignore

SIZE = 32  # pixels: images are encoded at this size, so that the cost does not depend on theirs
LARGEST_SAMPLE = 65_536  # images to learn from: neighbours are searched among all pairs
SMALLEST_SET = 64  # images; fewer have no neighbourhoods worth learning
WHITENING_SAMPLE = 10_000  # images: enough for principal components
HALF = 0.5  # of the way from plain to white principal components: purer clusters than at either end
OVERSAMPLING = 32  # of directions in the randomised decomposition
NEIGHBOURS = 15
DIMENSION = 64
ROUNDS = 2  # of finding neighbours and learning from them
BATCH = 256
ENCODING_BATCH = 1024
LEARNING_RATE = 3e-3


class Images(Protocol):
    """uint8 [N, 3, H, W]: a tensor, an array, or whatever gives rows of them by an array of indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class OwnEncoder:
    """A network of ours, `pixels` or `self-supervised`, over images at 32x32 in [-1, 1]."""

    def __init__(self, name: str, network: nn.Module, device: torch.device) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False).to(device)
        self.digest = _digest(network)
        self.device = device
        with torch.inference_mode():
            self.dimension = network(torch.zeros(1, 3, SIZE, SIZE, device=device)).shape[1]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network(centred(at_size(images.to(self.device))))


class ConvNet(nn.Module):
    """float [B, 3, 32, 32] in [-1, 1] -> float32 [B, dimension]."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_halving(3, 24, kernel=4),
            *_halving(24, 48, kernel=3),
            *_halving(48, 96, kernel=3),
            nn.Flatten(),
            nn.Linear(96 * (SIZE // 8) ** 2, 256, bias=False),
            nn.BatchNorm1d(256),
            nn.ReLU(inplace=True),
        )
        self.project = nn.Linear(256, dimension)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.features(images.contiguous(memory_format=torch.channels_last)))

    def second_layer(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in [-1, 1], of any size -> float32 [B, 48, H / 4, W / 4], not negative."""
        return self.features[:6](images.contiguous(memory_format=torch.channels_last))


class WhitenedPixels(nn.Module):
    """float [B, 3, 32, 32] in [-1, 1] -> float32 [B, dimension]: principal components, scaled."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.project = nn.Linear(3 * SIZE * SIZE, dimension)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.flatten(1))


NETWORKS: dict[str, type[ConvNet] | type[WhitenedPixels]] = {
    "pixels": WhitenedPixels,
    "self-supervised": ConvNet,
}


def fit_whitened_pixels(
    images: Images, *, seed: int, device: torch.device, dimension: int = 128, whitening: float = HALF
) -> OwnEncoder:
    """The encoder `pixels`: principal components of at most 10,000 of the `images` (uint8 [N, 3, H, W]).

    A component of variance v is scaled to v ** (1 - whitening): 0 keeps plain components, 1 gives each of them the
    variance one. Dimensions that the images do not have are left out.
    """
    sample = _sample(images, seed)[:WHITENING_SAMPLE].to(device)
    return OwnEncoder("pixels", _whitened_pixels(sample, dimension, whitening, seed), device)


def train_encoder(
    images: Images, *, seed: int, images_budget: int, device: torch.device, advance: Advance = ignore
) -> OwnEncoder:
    """The encoder `self-supervised`, trained on at most 65,536 of the `images` (uint8 [N, 3, H, W], H and W any).

    `images_budget` is the number of images seen in training, over all rounds; four passes are enough. The same
    seed, device and number of threads give the same encoder. ValueError where there are fewer than 64 images.
    """
    if len(images) < SMALLEST_SET:
        raise ValueError(
            f"an encoder cannot learn from {len(images)} images: give at least {SMALLEST_SET}, or use whitened pixels"
        )
    sample = _sample(images, seed).to(device)
    network: nn.Module = _whitened_pixels(sample, DIMENSION, HALF, seed)
    dimension = min(DIMENSION, len(sample) // 4)
    with _seeded(seed, device):
        student = ConvNet(dimension).to(device)
    for number in range(ROUNDS):
        links = nearest_neighbours(_encode(network, sample), NEIGHBOURS)
        targets = torch.from_numpy(commute_time_embedding(links, dimension, seed))
        _learn(student, sample, targets, images_budget // ROUNDS, seed + number, advance)
        network = student
    return OwnEncoder("self-supervised", student, device)


def save_encoder(encoder: OwnEncoder, path: Path) -> None:
    """Writes the encoder as safetensors, from which load_encoder makes it again."""
    with atomic_write(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in encoder.network.state_dict().items()},
            temporary,
            metadata={"encoder": encoder.name},
        )


def load_encoder(path: Path, device: torch.device) -> OwnEncoder:
    """The encoder that save_encoder wrote; ValueError where the file is missing, damaged or of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            name = (file.metadata() or {}).get("encoder", "without a name")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
        network = NETWORKS[name](len(tensors["project.bias"]))
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds no encoder of ours ({reason}); train it again") from error
    return OwnEncoder(name, network, device)


def _halving(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def _learn(network: ConvNet, sample: Tensor, targets: Tensor, budget: int, seed: int, advance: Advance) -> None:
    """Trains the direction of the network's output to be that of the targets, which is all that cosines see."""
    targets = F.normalize(targets).to(sample.device)
    batch = min(BATCH, len(sample))
    steps = max(1, budget // batch)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    generator = torch.Generator(sample.device).manual_seed(seed)
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(sample), (batch,), generator=generator, device=sample.device)
        views = augment(centred(sample[rows]), generator)
        loss = (1 - F.cosine_similarity(network(views), targets[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance(batch)
    network.eval()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Views of float [B, 3, H, W] in [-1, 1]: up to 6 % of shift, 10 % of scale, 30 % of contrast, a square hidden."""
    B, _, H, W = images.shape

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator, device=images.device) - 1

    frame = torch.zeros(B, 2, 3, device=images.device)
    zoom = 1 + 0.1 * uniform(B)
    frame[:, 0, 0] = zoom
    frame[:, 1, 1] = zoom * (1 + 0.1 * uniform(B))
    frame[:, :, 2] = 0.12 * uniform(B, 2)  # of half the width
    grid = F.affine_grid(frame, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    views = views * (1 + 0.3 * uniform(B, 1, 1, 1)) + 0.1 * uniform(B, 1, 1, 1)
    centre, half = uniform(B, 2, 1), 0.3 * uniform(B, 1).abs()
    beside = (torch.linspace(-1, 1, W, device=images.device) - centre[:, 0]).abs() < half
    above = (torch.linspace(-1, 1, H, device=images.device) - centre[:, 1]).abs() < half
    return views.masked_fill((above[:, :, None] & beside[:, None, :])[:, None], 0.0)


def _whitened_pixels(sample: Tensor, dimension: int, whitening: float, seed: int) -> WhitenedPixels:
    sample = sample[:WHITENING_SAMPLE]
    if bool((sample == sample[0]).all()):
        raise ValueError("all images are the same: there is nothing in them to group by")
    pixels = centred(sample).flatten(1)
    mean = pixels.mean(dim=0)
    with _seeded(seed, sample.device):
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


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators, for what draws from no other, and gives them their old state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _sample(images: Images, seed: int) -> Tensor:
    """uint8 [at most 65,536, 3, 32, 32], in random order; never more than a batch of large images in memory."""
    rows = np.random.default_rng(seed).permutation(len(images))[:LARGEST_SAMPLE]
    batches = np.array_split(rows, -(-len(rows) // ENCODING_BATCH) or 1)
    return torch.cat([at_size(torch.as_tensor(images[batch]).cpu()) for batch in batches])


def at_size(images: Tensor, size: int = SIZE) -> Tensor:
    """uint8 [B, 3, H, W] to uint8 [B, 3, size, size]; the encoders look at 32x32."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are uint8 [B, 3, H, W]; these are {images.dtype} {list(images.shape)}")
    if images.shape[2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def centred(images: Tensor) -> Tensor:
    """uint8 to float in [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.inference_mode()
def _encode(network: nn.Module, sample: Tensor) -> np.ndarray:
    batches = [network(centred(batch)).cpu() for batch in sample.split(ENCODING_BATCH)]
    return torch.cat(batches).numpy()


def _digest(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()
