from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sgdm.annotate import store
from sgdm.annotate.clusters import Clusters, fit_clusters
from sgdm.annotate.store import (
    AnnotationError,
    AnnotationManifest,
    begin_annotation,
    load_annotation,
    save_annotation,
)


def write_set(folder: Path) -> tuple[AnnotationManifest, Clusters]:
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float16)
    np.save(begin_annotation(folder), features)
    clusters = fit_clusters(features, [5], seed=0)[0]
    manifest = AnnotationManifest(
        data_digest="aaaa",
        encoder="pixels",
        weights_digest="bbbb",
        num_clusters=5,
        seed=0,
        iterations=30,
        parameters={"images": 100},
        versions={"faiss": "1"},
        report={"purity": 0.5},
    )
    save_annotation(folder, manifest, clusters)
    return manifest, clusters


def test_round_trip(tmp_path: Path) -> None:
    manifest, clusters = write_set(tmp_path / "set")
    annotation = load_annotation(tmp_path / "set", "aaaa")
    assert annotation.manifest == manifest
    assert np.array_equal(annotation.clusters, clusters.ids)
    assert np.array_equal(annotation.centroids, clusters.centroids)
    assert annotation.features.shape == (50, 4)
    assert annotation.frequencies.sum() == pytest.approx(1)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(
        ["manifest.json", "features.npy", "clusters.npy", "centroids.npy"]
    )


def test_a_set_of_other_data_is_refused_with_both_digests(tmp_path: Path) -> None:
    write_set(tmp_path)
    with pytest.raises(AnnotationError, match=r"aaaa.*this one is cccc.*annotate it again"):
        load_annotation(tmp_path, "cccc")


@pytest.mark.parametrize("written_before_the_end", [0, 1, 2])
def test_killed_between_two_files_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_before_the_end: int
) -> None:
    # Also over an older, whole set: its manifest must not vouch for new files.
    write_set(tmp_path)
    replace = store.atomic_write.__globals__["os"].replace
    moved: list[str] = []

    def replace_until_killed(source: Path, target: Path) -> None:
        if len(moved) == written_before_the_end:
            raise KeyboardInterrupt
        moved.append(str(target))
        replace(source, target)

    monkeypatch.setattr("sgdm.files.os.replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path)
    assert len(moved) == written_before_the_end
    with pytest.raises(AnnotationError, match=r"manifest\.json is missing"):
        load_annotation(tmp_path, "aaaa")


def test_new_features_never_meet_old_clusters(tmp_path: Path) -> None:
    write_set(tmp_path)
    assert begin_annotation(tmp_path) == tmp_path / "features.npy"
    with pytest.raises(AnnotationError, match=r"manifest\.json is missing"):
        load_annotation(tmp_path, "aaaa")


@pytest.mark.parametrize("name", ["features.npy", "clusters.npy", "centroids.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "pickle"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    write_set(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[: len(content) * 2 // 3])
    else:
        with path.open("wb") as file:
            np.save(file, np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_annotation(tmp_path, "aaaa")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("clusters.npy", np.full(50, 5, np.int32), "ids lie outside of 0 to 4"),
        ("clusters.npy", np.full(49, 0, np.int32), "49 cluster ids of 50 features"),
        ("clusters.npy", np.full(50, 0, np.int64), "int64"),
        ("centroids.npy", np.zeros((4, 4), np.float32), "4 centroids of 5"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    tmp_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    write_set(tmp_path)
    np.save(tmp_path / name, array)
    with pytest.raises(AnnotationError, match=message):
        load_annotation(tmp_path, "aaaa")
