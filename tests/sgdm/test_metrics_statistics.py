from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sgdm.metrics.frechet import Moments, frechet_distance
from sgdm.metrics.statistics import Statistics, StatisticsError

IDENTITY = {"data": "abc", "split": "val", "images": 30, "network": "inception (299 px)"}
CPU = torch.device("cpu")


@pytest.fixture
def statistics() -> Statistics:
    features = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    return Statistics(Moments.of(features), Moments.of(features[:, :4]), features[:20], None)


@pytest.fixture
def path(statistics: Statistics, tmp_path: Path) -> Path:
    statistics.save(tmp_path / "val.npz", IDENTITY)
    return tmp_path / "val.npz"


def test_what_is_saved_comes_back(path: Path, statistics: Statistics) -> None:
    found = Statistics.load(path, IDENTITY, CPU)
    assert found.moments.count == 30 and found.spatial is not None and found.spatial.dimension == 4
    assert torch.equal(found.moments.mean, statistics.moments.mean)
    np.testing.assert_array_equal(found.moments.covariance, statistics.moments.covariance)
    np.testing.assert_array_equal(found.pool, statistics.pool)
    assert frechet_distance(found.moments, statistics.moments) < 1e-9
    assert [file.name for file in path.parent.iterdir()] == ["val.npz"]


def test_a_network_without_maps(tmp_path: Path, statistics: Statistics) -> None:
    Statistics(statistics.moments, None, statistics.pool, None).save(tmp_path / "plain.npz", IDENTITY)
    assert Statistics.load(tmp_path / "plain.npz", IDENTITY, CPU).spatial is None


@pytest.mark.parametrize(
    ("name", "value"), [("data", "xyz"), ("network", "inception (300 px)"), ("images", 31), ("split", "train")]
)
def test_statistics_of_anything_else_are_refused(path: Path, name: str, value: object) -> None:
    message = f"of {name} {IDENTITY[name]}, wanted are those of {value}: delete it"
    with pytest.raises(StatisticsError) as error:
        Statistics.load(path, {**IDENTITY, name: value}, CPU)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_damaged_file_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(b"moments_mean", b"moments_main")):
        path.write_bytes(damaged)
        with pytest.raises(StatisticsError, match=r"val.npz is damaged.*delete it"):
            Statistics.load(path, IDENTITY, CPU)
