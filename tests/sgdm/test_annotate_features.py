from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgdm.annotate.features import FeatureManifest, FeatureSet, encode, load_features, save_features
from sgdm.annotate.sets import AnnotationError
from sgdm.annotate.shards import Shards


class Mean:
    """An encoder of three numbers: the mean of each channel."""

    name, digest, dimension = "mean", "none", 3

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def images(count: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_features_are_those_of_the_encoder_in_float16() -> None:
    data, done = images(10), []
    features = encode(Mean(), data.split(4), range(20, 30), done.append)
    assert features.dtype == np.float16
    assert np.array_equal(features, Mean()(data).half().numpy())
    assert done == [4, 4, 2]


def test_features_that_are_not_finite_are_refused_by_image() -> None:
    class Broken(Mean):
        def __call__(self, images: Tensor) -> Tensor:
            features = super().__call__(images)
            features[1] = torch.tensor([0.0, float("nan"), 0.0])
            features[2] = 1e6  # finite, but not in float16
            return features

    with pytest.raises(ValueError, match=r"mean gives features.*images 101, 102:"):
        encode(Broken(), images(4).split(4), range(100, 104))


def test_images_that_never_came_are_missed() -> None:
    with pytest.raises(ValueError, match=r"8 images came .* where the rows 0 to 9"):
        encode(Mean(), images(8).split(4), range(10))


def write_set(folder: Path, array: np.ndarray, shard_images: int) -> None:
    shards = Shards(folder, len(array), shard_images)
    shards.begin({"data": "aaaa"})
    for number in range(len(shards)):
        rows = shards.rows(number)
        shards.save(number, {"features": array[rows.start : rows.stop]})
    manifest = FeatureManifest(
        data_digest="aaaa",
        encoder="mean",
        weights_digest="bbbb",
        parameters={},
        count=len(array),
        dimension=array.shape[1],
        shard_images=shard_images,
        digest=shards.digest(),
        versions={},
    )
    save_features(folder, manifest)


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(23, 3)).astype(np.float16)


@pytest.fixture(scope="module")
def features(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder = tmp_path_factory.mktemp("features")
    write_set(folder, array, 5)
    return load_features(folder, "aaaa")


@settings(deadline=None, max_examples=60)
@given(rows=st.one_of(st.slices(23), st.lists(st.integers(0, 22), unique=True).map(sorted)))
def test_rows_are_those_of_one_array(features: FeatureSet, array: np.ndarray, rows: slice | list[int]) -> None:
    wanted = rows if isinstance(rows, list) else list(range(23)[rows])
    if isinstance(rows, slice) and (rows.step or 1) < 0:
        return  # rows are asked for in ascending order
    found = features[np.array(rows, dtype=np.int64) if isinstance(rows, list) else rows]
    assert found.dtype == np.float16 and np.array_equal(found, array[np.array(wanted, dtype=np.int64)])
    assert features.shape == (23, 3) and len(features) == 23


def test_features_of_other_images_are_refused_with_both_digests(tmp_path: Path, array: np.ndarray) -> None:
    write_set(tmp_path, array, 10)
    with pytest.raises(AnnotationError, match=r"aaaa.*this one is cccc"):
        load_features(tmp_path, "cccc")


def test_a_changed_or_missing_shard_is_named(tmp_path: Path, array: np.ndarray) -> None:
    write_set(tmp_path, array, 10)
    other = array[10:20].copy()
    other[3, 1] += 1
    np.save(tmp_path / "shard-00001.features.npy", other)
    features = load_features(tmp_path, "aaaa")
    assert np.array_equal(features[:10], array[:10])
    with pytest.raises(AnnotationError, match=r"shard-00001\.features\.npy is missing or damaged"):
        features[8:12]
    (tmp_path / "shard-00002.json").unlink()
    with pytest.raises(AnnotationError, match=r"shard-00002\.json is missing"):
        load_features(tmp_path, "aaaa")


def test_shards_of_another_extraction_are_not_taken_for_those_of_the_manifest(
    tmp_path: Path, array: np.ndarray
) -> None:
    write_set(tmp_path, array, 10)
    shards = Shards(tmp_path, 23, 10)
    shards.save(1, {"features": np.zeros((10, 3), np.float16)})
    with pytest.raises(AnnotationError, match="its manifest says"):
        load_features(tmp_path, "aaaa")


def test_a_shard_is_there_whole_or_not_at_all(
    tmp_path: Path, array: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(tmp_path, 23, 10)
    shards.begin({"data": "aaaa"})
    shards.save(0, {"features": array[:10]})

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sgdm.annotate.shards.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        shards.save(1, {"features": array[10:20]})
    monkeypatch.undo()
    assert [shards.is_whole(number) for number in range(3)] == [True, False, False]


def test_shards_of_this_identity_stay_and_others_go(tmp_path: Path, array: np.ndarray) -> None:
    def begun(count: int, size: int, identity: dict[str, Any]) -> list[bool]:
        shards = Shards(tmp_path, count, size)
        shards.begin(identity)
        return [shards.is_whole(number) for number in range(len(shards))]

    assert begun(23, 10, {"data": "aaaa"}) == [False] * 3
    Shards(tmp_path, 23, 10).save(1, {"features": array[10:20]})
    assert begun(23, 10, {"data": "aaaa"}) == [False, True, False]
    assert begun(23, 12, {"data": "aaaa"}) == [False] * 2
    Shards(tmp_path, 23, 12).save(1, {"features": array[12:]})
    assert begun(23, 12, {"data": "other images"}) == [False] * 2
    assert json.loads((tmp_path / "identity.json").read_text())["data"] == "other images"
