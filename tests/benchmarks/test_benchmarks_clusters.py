"""The peers of the clusters' case reach the same inertia, and growth that is too much is noticed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import scaling
from benchmarks.annotate_clusters import clusters, fewest, inertia, mixture
from sgdm.annotate.feature_rows import unit_rows


def test_peers_reach_the_same_inertia() -> None:
    (comparison,) = clusters(torch.device("cpu"), True)
    assert comparison.images == 2000
    unit = unit_rows(mixture(2000, 32, 60), slice(None))
    reached = {}
    for name, make in comparison.peers.items():
        ids = make()()
        assert isinstance(ids, np.ndarray)
        reached[name.split(",")[0]] = inertia(unit, ids)
        assert f"inertia {inertia(unit, ids):.4f}" in name
    assert list(reached) == ["scikit-learn KMeans", "scikit-learn MiniBatchKMeans", "sgdm"]
    assert reached["sgdm"] < 1.0101 * reached["scikit-learn KMeans"]


def test_inertia_by_hand() -> None:
    unit = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert inertia(unit, np.array([0, 0, 2])) == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_the_fewest_that_reach_a_target() -> None:
    unit = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    right, wrong = np.array([0, 1, 0]), np.array([0, 0, 1])
    assert fewest(lambda n: right if n >= 2 else wrong, (1, 2, 5), unit, 0.1) == (2, 0)
    assert fewest(lambda n: wrong, (1, 2, 5), unit, 0.1) == (5, pytest.approx(1 / 3))


def test_growth_is_noticed() -> None:
    def row(images: int, seconds: float, size: float) -> dict[str, Any]:
        return {"images": images, "pass": {"cpu_seconds": seconds}, "own_bytes": size}

    flat = [row(10_000, 1, 1e9), row(100_000, 10, 1e9 + 8 * 90_000)]
    assert scaling.check(flat) == []
    (memory,) = scaling.check([flat[0], row(100_000, 10, 1.3e9)])
    assert memory.startswith("memory grows by 299 MB beyond the ids")
    (slow,) = scaling.check([flat[0], row(100_000, 20, 1e9)])
    assert slow.startswith("an image takes 2.0 times as long")


def test_a_mixture_is_clustered_and_memory_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "NUM_CLUSTERS", (5, 10))
    scaling.write_mixture(tmp_path / "rows.npy", 300)
    assert np.load(tmp_path / "rows.npy").shape == (300, 768)
    row = scaling.cluster(tmp_path / "rows.npy", 200)
    assert row["images"] == 300 and row["repaired"] == [0, 0]
    assert all(row[part]["seconds"] > 0 for part in ("fit", "pass", "repair"))
    with scaling.peak_memory() as memory:
        before = scaling.resident()["own_bytes"]
        held = np.ones(20_000_000, np.uint8)
        time.sleep(0.1)
        assert held.all()
    assert memory["own_bytes"] >= before + 19e6
    assert memory["resident_bytes"] >= memory["own_bytes"]
