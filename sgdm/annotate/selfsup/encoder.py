"""An encoder of our own: a trained network over images at 32x32, and its file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sgdm.annotate.selfsup.networks import SIZE, ConvNet, SmallTransformer, WhitenedPixels
from sgdm.files import atomic_write

OwnNetwork = ConvNet | SmallTransformer | WhitenedPixels

_NETWORKS: dict[str, type[OwnNetwork]] = {kind.name: kind for kind in (ConvNet, SmallTransformer, WhitenedPixels)}


class Images(Protocol):
    """uint8 [N, 3, H, W]: a tensor, an array, or whatever gives rows of them by an array of indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class OwnEncoder:
    """A network of ours over images at 32x32 in [-1, 1], and the objective that it was trained by, if it was."""

    def __init__(self, network: OwnNetwork, objective: str | None, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.objective = objective
        self.name = network.name if objective is None else f"self-supervised {network.name} ({objective})"
        self.digest = _digest(network)
        self.device = device
        with torch.inference_mode():
            self.dimension = int(network(torch.zeros(1, 3, SIZE, SIZE, device=device)).shape[1])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"input_size": [SIZE, SIZE], "resize": "bilinear, antialiased, the whole image"}

    def __call__(self, images: Tensor) -> Tensor:
        return self.run(self.network, images)

    @torch.inference_mode()
    def run(self, forward: Callable[[Tensor], Tensor], images: Tensor, size: int = SIZE) -> Tensor:
        """What `forward`, a way through the network, makes of uint8 [B, 3, H, W], brought to `size` pixels."""
        return forward(centred(at_size(images.to(self.device), size)))


def save_encoder(encoder: OwnEncoder, path: Path) -> None:
    """Writes the encoder as safetensors, from which load_encoder makes it again."""
    about = {"network": encoder.network.name, "dimension": str(encoder.dimension)}
    if encoder.objective is not None:
        about["objective"] = encoder.objective
    with atomic_write(path) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in encoder.network.state_dict().items()}
        save_file(tensors, temporary, metadata=about)


def load_encoder(path: Path, device: torch.device) -> OwnEncoder:
    """The encoder that save_encoder wrote; ValueError where the file is missing, damaged or of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
        network = _NETWORKS[about["network"]](int(about["dimension"]))
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds no encoder of ours ({reason}); train it again") from error
    return OwnEncoder(network, about.get("objective"), device)


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


def _digest(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()
