"""Part of the case annotate: features of stored images by a vision transformer, against the loop that one writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset

from benchmarks.comparison import Comparison, Step
from engine import compilation
from engine.distributed import fast_bf16
from sgdm.annotate.backbones import load_backbone
from sgdm.annotate.features import encode
from sgdm.data.beton import write_beton
from sgdm.data.loader import Loader
from sgdm.data.sources import ImageFolder

SIDE = 64
"""Of the stored images, in pixels."""


def features(device: torch.device, quick: bool) -> Iterator[Comparison]:
    """With random weights, which take as long as trained ones."""
    name, count, batch = ("test_vit", 32, 16) if quick else ("vit_small_patch16_224.dino", 128, 32)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        weights, beton = root / "model.safetensors", root / "train.beton"
        save_file(timm.create_model(name, pretrained=False).state_dict(), weights)
        random = np.random.default_rng(0)
        (root / "images").mkdir()
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(root / "images" / f"{number:05}.png")
        write_beton(ImageFolder(root / "images", "train"), beton, SIDE, split="train")
        bf16 = fast_bf16(device)
        ours = partial(_ours, name, weights, beton, batch, device)
        peers: dict[str, Callable[[], Step]] = {
            "timm loop, fp32": partial(_timm_loop, name, weights, root / "images", batch, device, False),
            "timm loop, bf16 autocast": partial(_timm_loop, name, weights, root / "images", batch, device, True),
            "sgdm, fp32": partial(ours, bf16=False, compiled=False),
            "sgdm, bf16": partial(ours, bf16=True, compiled=False),
            "sgdm, bf16, compiled": partial(ours, bf16=True, compiled=True),
        }
        if not bf16:
            peers = {peer: make for peer, make in peers.items() if "bf16" not in peer}
        yield Comparison(f"features of {count} images of {SIDE} px, {name}", peers, device, images=count)


class _Files(Dataset[torch.Tensor]):
    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._paths = sorted(folder.iterdir())
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self._transform(Image.open(self._paths[number]).convert("RGB"))


def _timm_loop(name: str, weights: Path, folder: Path, batch: int, device: torch.device, bf16: bool) -> Step:
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(weights)}, num_classes=0)
    network.eval().to(device)
    config = resolve_model_data_config(network)
    transform = create_transform(**config, is_training=False)
    loader = DataLoader(_Files(folder, transform), batch, num_workers=2, persistent_workers=True)

    def step() -> np.ndarray:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return np.concatenate([network(images.to(device)).float().cpu().numpy() for images in loader])

    return step


def _ours(
    name: str, weights: Path, beton: Path, batch: int, device: torch.device, *, bf16: bool, compiled: bool
) -> Step:
    encoder = load_backbone(
        name,
        weights,
        device,
        bf16=bf16,
        compiled=compilation.choose("default", device) if compiled else None,
        batch_size=batch,
    )
    loader = Loader(beton, batch_size=batch, device=device, seed=0)
    return lambda: encode(encoder, (images.image for images in loader.once()), range(len(loader)))
