"""What tells the segments of a run's images: made by the first process, once, and read by all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine import telemetry
from engine.config import Config, to_plain
from engine.distributed import Ranks
from sgdm.annotate import regions, segments
from sgdm.annotate.features import Encoder
from sgdm.annotate.names import BOX_FINDERS
from sgdm.annotate.patches import PatchEncoder, patch_encoder
from sgdm.annotate.segments import Segmenter
from sgdm.annotate.selfsup.sample import LARGEST_SAMPLE
from sgdm.annotate.stego import load_stego, save_stego, train_stego
from sgdm.annotate.stego_loss import OfPairs
from sgdm.data.loader import Loader
from sgdm.files import fingerprint, save_array, sha256_file
from sgdm.progress import Advance


class Found(NamedTuple):
    segmenter: Segmenter
    digest: str
    """SHA-256 of the file that it was read from."""
    parameters: dict[str, Any]


def make_segmenter(config: Config, loader: Loader, encoder: Encoder, patches: PatchEncoder, ranks: Ranks) -> Found:
    """The segmenter of annotation.segments, over the frozen `patches` of `encoder`, in a file that is named by all that
    decides it. STEGO's training goes on where a kill has left it."""
    wanted, finder = config.annotation.segments, config.annotation.segments.finder
    decisive = to_plain(dataclasses.replace(wanted, crf=False)), config.annotation.iterations, config.seed
    origin = fingerprint(loader.manifest.digest, patches.digest, patches.name, *decisive)[:8]
    file = f"{finder}-{wanted.num_segments}-{origin}{'.safetensors' if finder == 'stego' else '.npy'}"
    path = config.data.folder / "annotations" / file
    where = patch_encoder(encoder, "boxes") if finder in BOX_FINDERS else patches
    if ranks.first and not path.is_file():
        if finder == "stego":
            _train(config, loader, encoder, patches, path)
        else:
            sample = _sample(config, loader, where, patches)
            iterations = config.annotation.iterations
            save_array(
                path, segments.fit_segments(sample, wanted.num_segments, seed=config.seed, iterations=iterations)
            )
    ranks.wait()
    digest = sha256_file(path)
    if finder == "stego":
        about = {"images": wanted.images, "shifts": to_plain(wanted.shifts)}
        return Found(load_stego(path, patches, loader.device), digest, about)
    classes = torch.from_numpy(np.load(path, allow_pickle=False)).to(loader.device)
    if finder == "k-means":
        return Found(segments.PatchClasses(patches, classes), digest, {"sampled_patches": segments.SAMPLE})
    segmenter = regions.RegionClasses(where, patches, finder, classes)
    return Found(segmenter, digest, {"objects": regions.OBJECTS, "cut in": where.name})


def _sample(config: Config, loader: Loader, where: PatchEncoder, patches: PatchEncoder) -> np.ndarray:
    """What classes are made of: patches, or regions. Of each of very many images a patch says more than many patches
    of a few."""
    rows = _some_rows(loader, segments.SAMPLE, config.seed)
    with telemetry.progress("annotate, patches", len(rows)) as advance:
        images = _images(loader, advance, rows)
        finder = config.annotation.segments.finder
        if finder in BOX_FINDERS:
            return regions.sample_regions(where, patches, images, finder)
        return segments.sample_patches(patches, images, len(rows), config.seed)


def _train(config: Config, loader: Loader, encoder: Encoder, patches: PatchEncoder, path: Path) -> None:
    wanted, checkpoint = config.annotation.segments, path.with_suffix(".training.pt")
    with telemetry.progress("annotate, STEGO", wanted.images) as advance:
        stego = train_stego(
            patches,
            StoredImages(loader, _some_rows(loader, LARGEST_SAMPLE, config.seed)),
            num_segments=wanted.num_segments,
            seed=config.seed,
            images_budget=wanted.images,
            shifts=None if wanted.shifts is None else OfPairs(*wanted.shifts),
            embed=encoder,
            checkpoint=checkpoint,
            advance=advance,
        )
    save_stego(stego, path)
    checkpoint.unlink(missing_ok=True)


class StoredImages:
    """Some of the stored images, read when they are asked for."""

    def __init__(self, loader: Loader, rows: np.ndarray) -> None:
        self._loader, self._rows = loader, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, numbers: np.ndarray) -> Tensor:
        """uint8 [n, 3, H, W] of int64 [n], in this order."""
        return torch.cat([batch.image for batch in self._loader.select(self._rows[numbers])])


def _some_rows(loader: Loader, most: int, seed: int) -> np.ndarray:
    """int64: all rows, or so many at random, ascending."""
    rows = np.arange(len(loader))
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _images(loader: Loader, advance: Advance, rows: np.ndarray) -> Iterator[Tensor]:
    """The images of `rows` in order."""
    for batch in loader.select(rows):
        yield batch.image
        advance(len(batch.image))
