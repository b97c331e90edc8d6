"""Features of images: what an encoder is, frozen networks of timm as encoders, and features as a file."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
import torch
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from sgdm.files import atomic_write, sha256_file
from sgdm.progress import Advance, ignore

HUB_TIMEOUT = 5.0  # seconds; the hub client alone would retry a dead network for most of a minute
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class Encoder(Protocol):
    """A frozen map from images to features."""

    name: str
    digest: str  # SHA-256 of what the map is made of: equal digests, equal features
    dimension: int

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on any device -> float32 [B, D] on the encoder's device."""
        ...


class WeightsUnavailable(ValueError):  # noqa: N818 - it says what is so, like StopIteration
    """The weights of a backbone are neither on this machine nor to be had from the hub."""


class TimmEncoder:
    """A timm backbone: its pooled feature (the class token of DINO), at its own input size, mean and deviation."""

    def __init__(self, name: str, network: Any, digest: str, device: torch.device) -> None:
        self.name = name
        self.digest = digest
        self.network = network.eval().requires_grad_(False).to(device)
        self.dimension = int(network.num_features)
        self._device = device
        config = network.pretrained_cfg
        self._size = tuple(config["input_size"][1:])
        self._mean = torch.tensor(config["mean"], device=device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(config["std"], device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return self.run(self.network, images)

    @torch.inference_mode()
    def run(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What `forward`, a way through the network, makes of uint8 [B, 3, H, W]; float32."""
        pixels = images.to(self._device).float() / 255
        # The whole small image is enlarged, without a crop: what is at its border counts too.
        pixels = F.interpolate(pixels, self._size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            features = forward((pixels - self._mean) / self._deviation)
        return features.float()


def load_backbone(name: str, weights: Path | None, device: torch.device) -> TimmEncoder:
    """The pretrained timm backbone `name`, for example vit_small_patch16_224.dino.

    `weights` is a safetensors file or a PyTorch state dict; without it, the hub's cache on this machine is
    looked up, then the hub. WeightsUnavailable where neither has them; ValueError where the name is unknown or
    a tensor of the file does not fit.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no backbone {name!r}; timm.list_models('*dino*') lists some that fit")
    path = _from_hub(name) if weights is None else weights
    if not path.is_file():
        raise WeightsUnavailable(f"there is no weight file {path} for the backbone {name}; check the path")
    try:
        # With the checkpoint's own number of classes timm is strict about every tensor; a head goes afterwards.
        network: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} does not fit the backbone {name}: {reason} Give the file of just this timm model"
        ) from error
    network.reset_classifier(0)
    return TimmEncoder(name, network, sha256_file(path), device)


def _from_hub(name: str) -> Path:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsUnavailable(f"timm knows no hub file for the backbone {name}; give a file (weights)")
    files = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    for file in files:
        cached = try_to_load_from_cache(config.hf_hub_id, file)
        if isinstance(cached, str):
            return Path(cached)
    try:
        # One short question first: it fails at once where there is no network, hf_hub_download after a minute.
        siblings = HfApi().model_info(config.hf_hub_id, timeout=HUB_TIMEOUT).siblings or []
        offered = {sibling.rfilename for sibling in siblings}
        return Path(hf_hub_download(config.hf_hub_id, next(file for file in files if file in offered)))
    except Exception as error:  # the errors are those of whichever HTTP library the hub client is built on
        raise WeightsUnavailable(
            f"the weights of the backbone {name} are not on this machine and the hub did not give them "
            f"({type(error).__name__}: {error}). Fetch {config.hf_hub_id} with a network (it is then cached), "
            f"give its file (weights), or use a self-supervised encoder trained on your own images"
        ) from error


def extract(
    encoder: Encoder,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    path: Path,
    advance: Advance = ignore,
) -> None:
    """Writes float16 [count, D] to `path` (.npy), whole or not at all, a batch in memory at a time.

    `batches` yields image uint8 [B, 3, H, W] and index int64 [B] in any order; every row 0 .. count-1 must come.
    ValueError names rows whose features are not finite in float16, and rows that never came.
    """
    seen = np.zeros(count, dtype=bool)
    with atomic_write(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, "w+", np.float16, (count, encoder.dimension))
        for images, index in batches:
            features = encoder(images).half().cpu().numpy()
            where = index.cpu().numpy()
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"{encoder.name} gives features that are no finite float16 numbers for the images "
                    f"{_some(where[~finite])}: look at these images and at the weights"
                )
            rows[where] = features
            seen[where] = True
            advance(len(where))
        if not seen.all():
            raise ValueError(
                f"{count - int(seen.sum())} of {count} images never came to be encoded: "
                f"{_some(np.flatnonzero(~seen))}; give every image once"
            )
        rows.flush()


def _some(numbers: np.ndarray) -> str:
    return ", ".join(str(number) for number in numbers[:5]) + (" ..." if len(numbers) > 5 else "")
