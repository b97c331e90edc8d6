from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sgdm import files
from sgdm.annotate.cluster_set import ClusterManifest, load_clusters, save_clusters
from sgdm.annotate.sets import AnnotationError

IDS = np.arange(50, dtype=np.int32) % 5
CENTROIDS = np.eye(5, 4, dtype=np.float32)
NEAREST = np.arange(40, dtype=np.int64).reshape(5, 8)
MANIFEST = ClusterManifest(
    data_digest="aaaa",
    method="k-means",
    encoder="pixels",
    weights_digest="bbbb",
    features_digest="ffff",
    num_clusters=5,
    seed=0,
    parameters={"iterations": 30},
    versions={"faiss": "1"},
    report={"purity": 0.5},
)


def write_set(folder: Path, ids: np.ndarray = IDS) -> None:
    save_clusters(folder, MANIFEST, ids, CENTROIDS, NEAREST)


def test_round_trip(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    found = load_clusters(tmp_path / "set", "aaaa")
    assert found.manifest == MANIFEST
    assert np.array_equal(found.clusters, IDS) and found.clusters.dtype == np.int32
    assert np.array_equal(found.centroids, CENTROIDS) and np.array_equal(found.nearest, NEAREST)
    assert found.frequencies.tolist() == [0.2] * 5
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "centroids.npy",
        "clusters.npy",
        "manifest.json",
        "nearest.npy",
    ]


def test_a_set_of_other_data_is_refused_with_both_digests(tmp_path: Path) -> None:
    write_set(tmp_path)
    with pytest.raises(AnnotationError, match=r"aaaa.*this one is cccc.*annotate it again"):
        load_clusters(tmp_path, "cccc")


@pytest.mark.parametrize("written_before_the_end", [0, 1, 2, 3])
def test_killed_between_two_files_it_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_before_the_end: int
) -> None:
    # Also over an older, whole set: its manifest must not vouch for new files.
    write_set(tmp_path)

    replace, moved = files.os.replace, []

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
        load_clusters(tmp_path, "aaaa")


@pytest.mark.parametrize("name", ["clusters.npy", "centroids.npy", "nearest.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
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
        path.write_bytes(content[:-3] + b"\x01" + content[-2:])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_clusters(tmp_path, "aaaa")


def test_a_manifest_of_another_kind_of_set_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"num_clusters"', '"num_segments"'))
    with pytest.raises(AnnotationError, match="damaged or of another version"):
        load_clusters(tmp_path, "aaaa")


@pytest.mark.parametrize("wrong", [-1, 5])
def test_ids_outside_of_the_clusters_are_not_written(tmp_path: Path, wrong: int) -> None:
    ids = IDS.copy()
    ids[7] = wrong
    with pytest.raises(ValueError, match="must lie within 0 to 4"):
        write_set(tmp_path / "set", ids)
    assert not (tmp_path / "set").exists()
