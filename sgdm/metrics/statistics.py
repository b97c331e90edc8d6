"""What is kept of a set of images as one network sees them; of real images, on disk."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgdm.files import atomic_write
from sgdm.metrics.frechet import Moments

VERSION = 1
"""Of the file."""


class StatisticsError(ValueError):
    """A file of statistics that is damaged, or of other images or another network; the message names both."""


@dataclass(frozen=True)
class Statistics:
    moments: Moments
    """Of the pooled features of all images."""

    spatial: Moments | None
    """Of their spatial features; None where the network has none."""

    pool: NDArray[np.float32]
    """Pooled features [n, D] of all of them, or of a random part, for metrics that compare images one by one."""

    logits: NDArray[np.float32] | None
    """[N, C]; None where they are not needed, or the network has none."""

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Writes all but the logits. `identity` (JSON-like) says of what images and by what network they are."""
        arrays = {"pool": self.pool, **_arrays("moments", self.moments)}
        if self.spatial is not None:
            arrays |= _arrays("spatial", self.spatial)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, identity=json.dumps({**identity, "version": VERSION}), **arrays)

    @classmethod
    def load(cls, path: Path, identity: Mapping[str, Any], device: torch.device) -> Statistics:
        """Those of this very identity. StatisticsError names what differs."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found, wanted = json.loads(str(file["identity"])), {**identity, "version": VERSION}
                arrays = {name: file[name] for name in file.files if name != "identity"}
            moments = _moments("moments", arrays, device)
            spatial = _moments("spatial", arrays, device) if "spatial_count" in arrays else None
            pool = arrays["pool"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise StatisticsError(f"{path} is damaged ({error}): delete it, and it is made anew") from error
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                raise StatisticsError(
                    f"{path} has the statistics of {name} {found.get(name)}, wanted are those of {wanted.get(name)}: "
                    "delete it, and it is made anew"
                )
        return cls(moments, spatial, pool, None)


def _arrays(name: str, moments: Moments) -> dict[str, NDArray[Any]]:
    return {
        f"{name}_count": np.array(moments.count),
        f"{name}_mean": moments.mean.cpu().numpy(),
        f"{name}_scatter": moments.scatter.cpu().numpy(),
    }


def _moments(name: str, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> Moments:
    mean, scatter = arrays[f"{name}_mean"], arrays[f"{name}_scatter"]
    if mean.dtype != np.float64 or scatter.shape != (mean.size, mean.size):
        raise ValueError(f"{name} of {mean.dtype} {mean.shape} and {scatter.shape}")
    moments = Moments(mean.size, device)
    moments.count = int(arrays[f"{name}_count"])
    moments.mean, moments.scatter = torch.from_numpy(mean).to(device), torch.from_numpy(scatter).to(device)
    return moments
