"""Samples in every format: what is written is read again, whole or not at all, by its key alone."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engine import exports
from engine.batches import Batches
from sgdm.data.loader import Loader

COUNT, SIZE = 23, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
CLUSTERS = np.random.default_rng(1).integers(-1, 12, COUNT)
IN_ORDER = [range(0, 10), range(10, 20), range(20, 23)]
RESUMED = [range(4, 8), [*range(0, 4), *range(8, 13)], range(12, 16), range(16, 23)]
"""Batches of another size around what a kill has left, and one number twice."""

every_format = pytest.mark.parametrize("format", exports.FORMATS)


def make_batches(folder: Path, parts: list = IN_ORDER, **more: NDArray) -> Batches:
    batches = Batches(folder, COUNT, "key")
    batches.begin()
    for part in parts:
        numbers = np.array(part)
        further = {name: array[numbers] for name, array in more.items()}
        batches.write(numbers, {"image": IMAGES[numbers], "cluster": CLUSTERS[numbers], **further})
    return batches


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    return make_batches(tmp_path / "batches")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_format
@pytest.mark.parametrize("parts", [IN_ORDER, RESUMED])
def test_images_are_read_as_they_were(format: str, parts: list, tmp_path: Path) -> None:
    path = exports.export(format, tmp_path / "guidance-1.5", make_batches(tmp_path / "batches", parts), "key")
    assert path.name.startswith("guidance-1.5")
    for numbers in (np.arange(COUNT), np.array([22, 0, 7]), np.array([12])):
        read = exports.images_of(format, path, numbers)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, IMAGES[numbers])
    clusters = exports.clusters_of(format, path)
    assert clusters.dtype == np.int64
    np.testing.assert_array_equal(clusters, CLUSTERS)


@every_format
def test_the_path_is_known_without_a_key(format: str, batches: Batches, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "guidance-1.5"
    assert exports.path_of(format, stem) is None
    path = exports.export(format, stem, batches, "one")
    assert exports.path_of(format, stem) == path
    assert all(exports.path_of(other, stem) is None for other in exports.FORMATS if other != format)


@every_format
def test_only_the_key_finds_them(format: str, batches: Batches, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "guidance-2"
    assert exports.find(format, stem, "one") is None
    path = exports.export(format, stem, batches, "one")
    assert exports.find(format, stem, "one") == path
    assert exports.find(format, stem, "another") is None
    assert exports.export(format, stem, batches, "another") == path  # in its place
    assert exports.find(format, stem, "another") == path
    assert exports.find(format, stem, "one") is None


@every_format
def test_samples_that_took_the_place_of_others_are_read(format: str, batches: Batches, tmp_path: Path) -> None:
    path = exports.export(format, tmp_path / "guidance-1", batches, "old")
    exports.images_of(format, path, np.arange(3))
    others = Batches(tmp_path / "others", COUNT, "new")
    others.begin()
    others.write(np.arange(COUNT), {"image": 255 - IMAGES, "cluster": CLUSTERS})
    exports.export(format, tmp_path / "guidance-1", others, "new")
    np.testing.assert_array_equal(exports.images_of(format, path, np.arange(COUNT)), 255 - IMAGES)


@every_format
def test_equal_samples_give_equal_bytes_however_they_came(format: str, tmp_path: Path) -> None:
    for name, parts in (("a", IN_ORDER), ("b", RESUMED)):
        exports.export(format, tmp_path / name / "guidance-0", make_batches(tmp_path / f"{name}-batches", parts), "key")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a")


@every_format
def test_what_fails_half_way_leaves_nothing_and_what_was_there(
    format: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = tmp_path / "out" / "guidance-1"
    path = exports.export(format, stem, batches, "old")
    before = content(stem.parent)
    images, read = exports._Samples.images, exports._Samples.read

    def some_images(self: exports._Samples) -> Iterator[tuple[NDArray, NDArray]]:
        yield next(images(self))
        raise OSError("No space left on device")

    def read_some(self: exports._Samples, i: int) -> object:
        if i == 12:
            raise OSError("No space left on device")
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(exports._Samples, "images", some_images)
        patch.setattr(exports._Samples, "read", read_some)
        with pytest.raises(OSError, match="No space"):
            exports.export(format, stem, batches, "new")
    assert exports.find(format, stem, "new") is None
    assert exports.find(format, stem, "old") == path
    assert content(stem.parent) == before


@pytest.mark.parametrize("format", ["npz", "beton"])
def test_a_truncated_file_is_not_found(format: str, batches: Batches, tmp_path: Path) -> None:
    path = exports.export(format, tmp_path / "guidance-1", batches, "key")
    path.write_bytes(path.read_bytes()[:-100])
    assert exports.find(format, tmp_path / "guidance-1", "key") is None


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_what_a_kill_has_left_of_a_folder_is_not_found_and_not_kept(
    format: str, batches: Batches, tmp_path: Path
) -> None:
    stem = tmp_path / "out" / "guidance-1"
    whole = content(exports.export(format, stem, batches, "key"))
    left = stem.with_name(".guidance-1.partial")
    stem.rename(left)
    (left / "of-an-older-attempt.png").touch()
    (left / exports.IDENTITY).unlink()
    assert exports.find(format, stem, "key") is None
    assert content(exports.export(format, stem, batches, "key")) == whole
    (stem / exports.IDENTITY).unlink()  # killed while it was deleted
    assert exports.find(format, stem, "key") is None
    assert exports.path_of(format, stem) is None


def test_folders_of_two_formats_are_told_apart(batches: Batches, tmp_path: Path) -> None:
    exports.export("png", tmp_path / "guidance-1", batches, "key")
    assert exports.find("webdataset", tmp_path / "guidance-1", "key") is None
    path = exports.export("webdataset", tmp_path / "guidance-1", batches, "key")
    assert exports.find("png", tmp_path / "guidance-1", "key") is None
    assert not list(path.glob("*.png"))


@every_format
def test_a_sample_that_is_missing_is_refused(format: str, tmp_path: Path) -> None:
    batches = make_batches(tmp_path / "batches", IN_ORDER[:-1])
    with pytest.raises(ValueError, match="20 of 23"):
        exports.export(format, tmp_path / "guidance-1", batches, "key")
    numbers = np.array(IN_ORDER[-1])
    batches.write(numbers, {"image": IMAGES[numbers][:1], "cluster": CLUSTERS[numbers]})
    with pytest.raises(ValueError, match="image of 21 of 23"):
        exports.export(format, tmp_path / "guidance-1", batches, "key")
    assert exports.find(format, tmp_path / "guidance-1", "key") is None


def test_an_npz_tells_what_the_samples_are_of_and_no_features(tmp_path: Path) -> None:
    more = {
        "row": np.arange(COUNT) * 3,
        "layout": np.arange(COUNT, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2),
        "pool_0": np.zeros((COUNT, 5), np.float32),
    }
    path = exports.export("npz", tmp_path / "guidance-1", make_batches(tmp_path / "batches", RESUMED, **more), "key")
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"key", "image", "cluster", "row", "layout"}
        assert str(file["key"]) == "key"
        np.testing.assert_array_equal(file["row"], more["row"])
        np.testing.assert_array_equal(file["layout"], more["layout"])


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_clusters_that_are_not_of_all_images_in_order_are_refused(
    format: str, batches: Batches, tmp_path: Path
) -> None:
    path = exports.export(format, tmp_path / "guidance-1", batches, "key")
    head, *lines = (path / exports.CLUSTERS).read_text().splitlines(keepends=True)
    for damaged, why in (
        (lines[:-1], "is of 22 images, not 23"),
        (lines[::-1], "has not the numbers 0 to 22"),
        ([*lines[:-1], "22"], "inhomogeneous"),
        ([*lines[:-1], "22,"], "invalid literal"),
    ):
        (path / exports.CLUSTERS).write_text("".join([head, *damaged]))
        with pytest.raises(ValueError, match=why):
            exports.clusters_of(format, path)


def test_clusters_of_another_number_of_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES, cluster=CLUSTERS[1:])
    with pytest.raises(ValueError, match=r"cluster is int64 \(22,\) for 23 images"):
        exports.clusters_of("npz", tmp_path / "a.npz")


def test_a_compressed_npz_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", image=IMAGES)
    with pytest.raises(ValueError, match="is compressed"):
        exports.images_of("npz", tmp_path / "a.npz", np.arange(3))


def test_pngs_have_their_clusters_beside_them(batches: Batches, tmp_path: Path) -> None:
    path = exports.export("png", tmp_path / "guidance-1", batches, "key")
    names = sorted(file.name for file in path.glob("*.png"))
    assert names == [f"{number:06}.png" for number in range(COUNT)]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path / name)) for name in names]), IMAGES)
    with (path / "clusters.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["number"]), int(row["cluster"])) for row in rows] == list(enumerate(CLUSTERS.tolist()))


def test_names_of_pngs_are_as_long_as_the_last() -> None:
    assert exports._png_name(7, 1_000_000) == "000007.png"
    assert exports._png_name(7, 1_000_001) == "0000007.png"


def test_shards_hold_samples_in_order_and_no_time_or_owner(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "SHARD", 10)
    path = exports.export("webdataset", tmp_path / "guidance-1", batches, "key")
    shards = sorted(path.glob("*.tar"))
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    names, clusters, images = [], [], []
    for shard in shards:
        with tarfile.open(shard) as file:
            for member in file:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                data = file.extractfile(member)
                assert data is not None
                names.append(member.name)
                if member.name.endswith(".cls"):
                    clusters.append(int(data.read()))
                else:
                    images.append(np.asarray(Image.open(data)))
    assert names == [f"{number:08}.{suffix}" for number in range(COUNT) for suffix in ("png", "cls")]
    assert clusters == CLUSTERS.tolist()
    np.testing.assert_array_equal(np.stack(images), IMAGES)
    numbers = np.array([22, 9, 10])  # of three shards
    np.testing.assert_array_equal(exports.images_of("webdataset", path, numbers), IMAGES[numbers])


def test_webdataset_reads_the_shards(batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(exports, "SHARD", 10)
    path = exports.export("webdataset", tmp_path / "guidance-1", batches, "key")
    samples = webdataset.WebDataset(str(path / "{000000..000002}.tar"), shardshuffle=False).decode("rgb8")
    read = [(key, image, cluster) for key, image, cluster in samples.to_tuple("__key__", "png", "cls")]
    assert [key for key, _, _ in read] == [f"{number:08}" for number in range(COUNT)]
    assert [cluster for _, _, cluster in read] == CLUSTERS.tolist()
    np.testing.assert_array_equal(np.stack([image for _, image, _ in read]), IMAGES)


def test_a_beton_of_samples_is_a_data_set_to_train_on(batches: Batches, tmp_path: Path) -> None:
    path = exports.export("beton", tmp_path / "train", batches, "key")
    loader = Loader(path, batch_size=4, device="cpu", seed=0)
    assert loader.manifest.count == COUNT and loader.manifest.image_size == SIZE
    assert loader.manifest.label_names == [str(cluster) for cluster in range(CLUSTERS.max() + 1)]
    np.testing.assert_array_equal(loader.labels, CLUSTERS)
    batch = next(loader.train(0))
    np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1).numpy(), IMAGES[batch.rows.numpy()])
    np.testing.assert_array_equal(batch.label.numpy(), CLUSTERS[batch.rows.numpy()])
