"""Frozen networks of timm as encoders: any backbone by its name, any of its features."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor
from torch.nn import functional as F

from sgdm.annotate.layer_reader import Reader, layer_reader
from sgdm.annotate.names import FeatureChoice, Part
from sgdm.files import sha256_file

HUB_TIMEOUT = 5.0  # seconds; the hub client alone would retry a dead network for most of a minute
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# What the trainers of DINO, MSN and MAE keep a network in, and call what they wrap it in.
WRAPPINGS = ("teacher", "target_encoder", "encoder", "model")
PREFIXES = ("module.", "backbone.", "encoder.")
POOLED = FeatureChoice()

Forward = Callable[[Tensor], Tensor]


class WeightsUnavailable(ValueError):  # noqa: N818 - it says what is so, like StopIteration
    """The weights of a backbone are neither on this machine nor to be had from the hub."""


class TimmEncoder:
    """A timm backbone at its own mean and deviation. The whole small image is resized, without a crop: what is at its
    border counts too."""

    def __init__(
        self,
        name: str,
        network: Any,
        digest: str,
        device: torch.device,
        choice: FeatureChoice,
        *,
        bf16: bool = False,
        compiled: Callable[[Forward], Forward] | None = None,
        batch_size: int = 0,
    ) -> None:
        """`bf16` keeps weights and activations in bf16; norms and softmax accumulate in fp32 all the same. `compiled`
        compiles a forward pass, whose batches are then filled up to `batch_size`, so that nothing is compiled anew.
        ValueError where the backbone has no such features."""
        self.name = name
        self.digest = digest
        self.choice = choice
        config = network.pretrained_cfg
        self.size: tuple[int, int] = (choice.input_size,) * 2 if choice.input_size else tuple(config["input_size"][1:])
        self._device, self._dtype = device, torch.bfloat16 if bf16 else torch.float32
        self.network = network.eval().requires_grad_(False).to(device, self._dtype)
        self._compiled, self._batch_size = compiled, batch_size
        self._mean = torch.tensor(config["mean"], device=device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(config["std"], device=device).view(1, 3, 1, 1)
        forward = self._image_feature()
        self.dimension = self.probe(forward).shape[1]
        self._encode = self.encoder_of(forward)

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the features beside weights and images."""
        return {
            **asdict(self.choice),
            "input_size": list(self.size),
            "resize": "bicubic, antialiased, the whole image",
            "arithmetic": str(self._dtype).removeprefix("torch."),
        }

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on any device -> float32 [B, D]."""
        return self._encode(images)

    def encoder_of(self, forward: Forward) -> Forward:
        """A way through the network from its pixels, as one from uint8 [B, 3, H, W] on any device to float32."""
        ready = self._compiled(forward) if self._compiled else forward

        @torch.inference_mode()
        def encode(images: Tensor) -> Tensor:
            count = len(images)
            pixels = images.to(self._device).float() / 255
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
            pixels = ((pixels - self._mean) / self._deviation).to(self._dtype)
            if self._compiled and count < self._batch_size:
                pixels = torch.cat([pixels, pixels[-1:].expand(self._batch_size - count, -1, -1, -1)])
            return ready(pixels)[:count].float()

        return encode

    @torch.inference_mode()
    def probe(self, forward: Forward) -> Tensor:
        """What a way through the network makes of one black image."""
        return forward(torch.zeros(1, 3, *self.size, device=self._device, dtype=self._dtype))

    def patches(self, part: Part) -> Forward:
        """The way to the patches [B, D, h, w] of the chosen layer; ValueError where there is no such part of it."""
        read = self._layer(part)
        return lambda pixels: read(pixels)[0]

    def _image_feature(self) -> Forward:
        """The way to an image's feature [B, D]."""
        if self.choice.token == "pooled":
            if self.choice.layer != -1:
                raise ValueError(f"layer {self.choice.layer} is not pooled, only the last is: give token class or mean")
            return self.network
        read = self._layer(self.choice.of("images"))
        if self.choice.token == "mean":
            return lambda pixels: read(pixels)[0].mean(dim=(2, 3))
        if self.probe(lambda pixels: read(pixels)[1]).shape[1] == 0:
            raise ValueError(f"the backbone {self.name} has no class token: give token pooled or mean")
        return lambda pixels: read(pixels)[1][:, 0]

    def _layer(self, part: Part) -> Reader:
        try:
            return layer_reader(self.network, self.choice.layer, part)
        except ValueError as error:
            raise ValueError(f"the backbone {self.name} {error}") from error


def load_backbone(
    name: str,
    weights: Path | None,
    device: torch.device,
    choice: FeatureChoice = POOLED,
    **arithmetic: Any,
) -> TimmEncoder:
    """The pretrained timm backbone `name`, for example vit_small_patch16_224.dino.

    `weights` is a safetensors file or a PyTorch state dict, also as the trainers of DINO, MSN or MAE save it; without
    it, the hub's cache on this machine is looked up, then the hub. `arithmetic`: bf16, compiled and batch_size of
    TimmEncoder. WeightsUnavailable where neither has them; ValueError where the name is unknown or the file does not
    hold just this backbone.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no backbone {name!r}; timm.list_models('*dino*') lists some that fit")
    path = _from_hub(name) if weights is None else weights
    if not path.is_file():
        raise WeightsUnavailable(f"there is no weight file {path} for the backbone {name}; check the path")
    config = timm.get_pretrained_cfg(name)
    # Transformers that stick to their input size take another one when they are made: its position embedding, which
    # the file has for the old one, is then interpolated.
    size: dict[str, Any] = (
        {"img_size": choice.input_size} if choice.input_size and config and config.fixed_input_size else {}
    )
    network: Any = timm.create_model(name, pretrained=False, num_classes=0, **size)
    try:
        _load(network, path)
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} does not fit the backbone {name}: {reason} Give the file of just this timm model"
        ) from error
    return TimmEncoder(name, network, sha256_file(path), device, choice, **arithmetic)


def _load(network: Any, path: Path) -> None:
    """Every tensor of the network from the file. Heads and decoders in the file are passed over; more layers than the
    network's are not: they are of a larger backbone."""
    found: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    found = next((found[key] for key in WRAPPINGS if isinstance(found.get(key), dict)), found)
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in found):
            found = {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}
    renamed = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if renamed is not None:
        found = renamed(found, network)
    classifiers = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    parts = {key.split(".")[0] for key in network.state_dict()}
    network.load_state_dict(
        {key: tensor for key, tensor in found.items() if key.split(".")[0] in parts and not key.startswith(heads)}
    )


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
