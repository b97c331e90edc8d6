"""The .beton file and its manifest: what is written, what is left out, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import ffcv.reader
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgdm.data import beton
from sgdm.data.beton import check_beton, crop_and_resize, is_prepared, read_manifest, write_beton
from sgdm.data.sources import ImageFolder, UnreadableImage


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make_folder(root: Path, count: int = 5, size: int = 16) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(noise(size, size, seed=i)).save(root / f"{i:03d}.png")
    return root


def prepare(folder: Path, path: Path, image_size: int = 16, **options: object) -> beton.DataManifest:
    source = ImageFolder(folder, "train")
    return write_beton(source, path, image_size, split="train", workers=2, **options)


def stored_rows(path: Path) -> list[tuple[bytes, int, int]]:
    """Image data, index and label of each sample, as FFCV's own reader finds them."""
    reader = ffcv.reader.Reader(str(path))
    assert reader.field_names == ["image", "index", "label"]
    content = path.read_bytes()
    size_at = {int(entry["ptr"]): int(entry["size"]) for entry in reader.alloc_table}
    rows = []
    for image, index, label in reader.metadata:
        start = int(image["data_ptr"])
        rows.append((content[start : start + size_at[start]], int(index), int(label)))
    return rows


# The crop rule


def test_the_middle_square_is_kept() -> None:
    image = noise(10, 21)
    np.testing.assert_array_equal(crop_and_resize(image, 10), image[:, 5:15])
    np.testing.assert_array_equal(crop_and_resize(image.swapaxes(0, 1), 10), image[:, 5:15].swapaxes(0, 1))


def test_making_smaller_does_not_alias() -> None:
    # Stripes of one pixel are finer than the result can show. Picking pixels would keep all white or all black.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = crop_and_resize(stripes, 16)
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 2


def test_making_larger_interpolates() -> None:
    ramp = np.repeat(np.linspace(0, 240, 8).astype(np.uint8)[None, :, None], 8, axis=0).repeat(3, axis=2)
    large = crop_and_resize(ramp, 32)[16, :, 0].astype(int)
    assert (np.diff(large[4:-4]) > 0).all()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_every_size_gives_a_full_square_and_keeps_a_plain_colour(h: int, w: int, image_size: int) -> None:
    plain = np.full((h, w, 3), (3, 130, 255), np.uint8)
    resized = crop_and_resize(plain, image_size)
    assert resized.shape == (image_size, image_size, 3) and resized.dtype == np.uint8
    assert (resized == (3, 130, 255)).all()


# What is written


def test_raw_images_are_stored_as_they_are(tmp_path: Path) -> None:
    make_folder(tmp_path / "set" / "one", count=40)
    make_folder(tmp_path / "set" / "two", count=3)
    done: list[int] = []
    manifest = prepare(tmp_path / "set", tmp_path / "train.beton", advance=done.append)
    assert sum(done) == manifest.count == 43
    for i, (data, index, label) in enumerate(stored_rows(tmp_path / "train.beton")):
        assert index == i
        assert label == (0 if i < 40 else 1)
        assert data == noise(16, 16, seed=i % 40).tobytes()


def test_images_above_96_pixels_are_stored_as_jpeg(tmp_path: Path) -> None:
    smooth = cv2.resize(noise(6, 6), (128, 128), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "set").mkdir()
    Image.fromarray(smooth).save(tmp_path / "set" / "a.png")
    prepare(tmp_path / "set", tmp_path / "train.beton", image_size=97)
    ((data, _, _),) = stored_rows(tmp_path / "train.beton")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert decoded.shape == (97, 97, 3)
    assert np.abs(decoded.astype(int) - crop_and_resize(smooth, 97)).mean() < 4


def test_no_image_lies_across_two_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = 4096
    monkeypatch.setattr(beton, "PAGE_BYTES", page)
    make_folder(tmp_path / "set", count=23)
    prepare(tmp_path / "set", tmp_path / "train.beton")
    table = ffcv.reader.Reader(str(tmp_path / "train.beton")).alloc_table
    assert len(table) == 23 and len(np.unique(table["ptr"] // page)) == 5
    assert (table["ptr"] // page == (table["ptr"] + table["size"] - 1) // page).all()
    assert [row[0] for row in stored_rows(tmp_path / "train.beton")] == [
        noise(16, 16, seed=i).tobytes() for i in range(23)
    ]


def test_the_manifest_is_read_back(tmp_path: Path) -> None:
    make_folder(tmp_path / "set" / "cat")
    written = prepare(tmp_path / "set", tmp_path / "train.beton")
    assert read_manifest(tmp_path / "train.beton") == check_beton(tmp_path / "train.beton") == written
    assert (written.source, written.count, written.image_size, written.label_names) == ("set", 5, 16, ["cat"])
    assert written.beton_bytes == (tmp_path / "train.beton").stat().st_size


def test_the_digest_follows_pixels_and_names_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "set")

    def digest() -> str:
        return prepare(tmp_path / "set", tmp_path / "train.beton").digest

    first = digest()
    Image.open(tmp_path / "set" / "002.png").convert("RGB").save(tmp_path / "set" / "002.png", compress_level=0)
    assert digest() == first
    changed = noise(16, 16, seed=2)
    changed[3, 4, 1] ^= 1
    Image.fromarray(changed).save(tmp_path / "set" / "002.png")
    second = digest()
    (tmp_path / "set" / "002.png").rename(tmp_path / "set" / "0020.png")
    assert len({first, second, digest()}) == 3


# Unreadable images


def test_unreadable_images_are_left_out_listed_and_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", count=4)
    (folder / "001.png").write_bytes(b"")
    (folder / "0025 text.png").write_text("I am no image")
    manifest = prepare(folder, tmp_path / "train.beton")
    assert (manifest.count, manifest.unreadable) == (3, 2)
    kept = [(data, index) for data, index, _ in stored_rows(tmp_path / "train.beton")]
    assert kept == [(noise(16, 16, seed=seed).tobytes(), i) for i, seed in enumerate([0, 2, 3])]
    listed = (tmp_path / "train.unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["001.png", "0025 text.png"]
    assert all(len(line.split("\t")) == 2 and "cannot be read" in line for line in listed)

    for name in ("001.png", "0025 text.png"):
        (folder / name).unlink()
    assert prepare(folder, tmp_path / "train.beton").unreadable == 0
    assert not (tmp_path / "train.unreadable.txt").exists()


def test_strict_raises_at_the_first_and_writes_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", count=4)
    (folder / "001.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"001\.png"):
        prepare(folder, tmp_path / "data" / "train.beton", strict=True)
    assert not list((tmp_path / "data").iterdir())


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image of set can be read: .*a\.png"):
        prepare(tmp_path / "set", tmp_path / "train.beton")
    assert not (tmp_path / "train.beton").exists()


@pytest.mark.parametrize("image_size", [0, -8, 2049])
def test_impossible_image_sizes_are_refused(tmp_path: Path, image_size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size {image_size} is not possible"):
        prepare(make_folder(tmp_path / "set", count=1), tmp_path / "train.beton", image_size=image_size)


# Whole or absent


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(make_folder(tmp_path / "set"), tmp_path / "train.beton")
    return tmp_path / "train.beton"


def test_a_writer_that_dies_before_the_manifest_leaves_nothing_whole(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    # Other pixels in a file of the same size: an old manifest left in place would vouch for it.
    Image.fromarray(noise(16, 16, seed=99)).save(prepared.parent / "set" / "000.png")
    monkeypatch.setattr(beton, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        prepare(prepared.parent / "set", prepared)
    with pytest.raises(ValueError, match=r"train\.json does not exist.*prepare the data set again"):
        check_beton(prepared)


def test_a_writer_that_dies_while_decoding_leaves_the_old_set(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = prepared.read_bytes(), check_beton(prepared)
    monkeypatch.setattr(beton, "crop_and_resize", die)
    with pytest.raises(KeyboardInterrupt):
        prepare(prepared.parent / "set", prepared)
    assert (prepared.read_bytes(), check_beton(prepared)) == before


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x7f" * path.stat().st_size)


def garble_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


def list_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text("[]")


def wrong_count(path: Path) -> None:
    manifest = path.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"count": 5', '"count": "5"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train\.beton has .* bytes, its manifest says .* prepare it again"),
        (overwrite, r"train\.beton is not the \.beton file of its manifest: .* expected \(2, 3, 5\)"),
        (Path.unlink, r"train\.beton does not exist, but its manifest does"),
        (garble_manifest, r"train\.json is not valid JSON"),
        (list_manifest, r"train\.json does not have the entries source, split"),
        (wrong_count, r"train\.json: count is '5', not int"),
    ],
)
def test_damage_is_found_and_named(prepared: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(prepared)
    with pytest.raises(ValueError, match=message):
        check_beton(prepared)


def test_a_second_run_is_told_from_a_first(prepared: Path) -> None:
    folder = prepared.parent / "set"
    assert is_prepared(ImageFolder(folder, "train"), prepared, 16, split="train")
    assert not is_prepared(ImageFolder(folder, "train"), prepared, 32, split="train")
    assert not is_prepared(ImageFolder(folder, "train"), prepared, 16, split="val")
    os.utime(folder / "000.png", ns=(0, 0))
    assert not is_prepared(ImageFolder(folder, "train"), prepared, 16, split="train")


def test_a_damaged_set_is_not_prepared(prepared: Path) -> None:
    truncate(prepared)
    assert not is_prepared(ImageFolder(prepared.parent / "set", "train"), prepared, 16, split="train")
