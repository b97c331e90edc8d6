"""Sources of images: every kind of file a folder may hold, and Fashion-MNIST."""

from __future__ import annotations

import functools
import gzip
import http.server
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgdm.data.opening import open_source
from sgdm.data.sources import (
    FASHION_MNIST_DEBIAN_FOLDER,
    FashionMNIST,
    ImageFolder,
    MissingSplit,
    UnreadableImage,
    parse_idx,
)

needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST_DEBIAN_FOLDER.exists(), reason="the Debian package dataset-fashion-mnist is not installed"
)


def only_image(folder: Path) -> np.ndarray:
    source = ImageFolder(folder, "train")
    assert len(source) == 1
    image = source.read(0).image
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    return image


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def test_grey_is_repeated_in_the_three_channels(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    save(Image.fromarray(grey), tmp_path / "a.png")
    np.testing.assert_array_equal(only_image(tmp_path), np.repeat(grey[:, :, None], 3, axis=2))


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    save(Image.fromarray(colours).quantize(4), tmp_path / "a.png")
    np.testing.assert_array_equal(only_image(tmp_path), colours)


def test_transparent_parts_show_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], np.uint8)
    save(Image.fromarray(pixels, "RGBA"), tmp_path / "a.png")
    transparent, opaque, half = only_image(tmp_path)[0]
    assert transparent.tolist() == [255, 255, 255]
    assert opaque.tolist() == [10, 20, 30]
    assert np.abs(half.astype(int) - 127).max() <= 1


def test_palette_with_a_transparent_entry_shows_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putpixel((1, 0), 1)
    save(image, tmp_path / "a.png", transparency=0)
    assert only_image(tmp_path)[0].tolist() == [[255, 255, 255], [50, 60, 70]]


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    save(Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)), tmp_path / "a.png")
    assert only_image(tmp_path)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 30))
    save(red.convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert np.abs(only_image(tmp_path).astype(int) - [220, 30, 30]).max() < 12


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: shown 8 wide and 16 high
    save(Image.new("RGB", (16, 8)), tmp_path / "a.jpg", exif=exif)
    assert only_image(tmp_path).shape == (16, 8, 3)


@pytest.mark.parametrize("name", ["a.PNG", "a.JpEg", "a.JPG", "a.webp", "a.BMP"])
def test_suffixes_in_any_letter_case(tmp_path: Path, name: str) -> None:
    save(Image.new("RGB", (8, 4), (0, 128, 0)), tmp_path / name)
    assert only_image(tmp_path).shape == (4, 8, 3)


@pytest.mark.parametrize("content", ["empty", "text", "cut png", "cut jpg"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = tmp_path / ("a.jpg" if content == "cut jpg" else "a.png")
    if content.startswith("cut"):
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"" if content == "empty" else b"I am no image")
    source = ImageFolder(tmp_path, "train")
    with pytest.raises(UnreadableImage, match=path.name):
        source.read(0)


def test_a_link_that_points_nowhere_is_an_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    source = ImageFolder(tmp_path, "train")
    source.fingerprint()
    with pytest.raises(UnreadableImage, match=r"a\.png"):
        source.read(0)


def make_folder(root: Path, names: list[str]) -> Path:
    for name in names:
        save(Image.new("RGB", (4, 4)), root / name)
    return root


def test_identifiers_are_sorted_relative_paths_of_any_depth(tmp_path: Path) -> None:
    make_folder(tmp_path, ["z.png", "b/y.png", "b/a/x.png", ".hidden.png", ".cache/w.png"])
    (tmp_path / "notes.txt").write_text("no image")
    assert list(ImageFolder(tmp_path, "train").identifiers) == ["b/a/x.png", "b/y.png", "z.png"]


def test_labels_are_first_level_subfolders(tmp_path: Path) -> None:
    make_folder(tmp_path, ["dog/deep/1.png", "cat/1.png", "loose.png"])
    source = ImageFolder(tmp_path, "train")
    assert list(source.label_names) == ["cat", "dog"]
    assert {source.identifiers[i]: source.read(i).label for i in range(3)} == {
        "cat/1.png": 0,
        "dog/deep/1.png": 1,
        "loose.png": -1,
    }


def test_train_and_val_subfolders_are_the_splits(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train/cat/1.png", "val/cat/2.png", "val/3.png"])
    assert list(open_source(str(tmp_path), "train").identifiers) == ["cat/1.png"]
    assert list(open_source(str(tmp_path), "val").identifiers) == ["3.png", "cat/2.png"]


@pytest.mark.parametrize("names", [["1.png"], ["train/1.png", "test/2.png"], ["train/1.png", "plane/2.png"]])
def test_a_missing_val_split_is_an_error(tmp_path: Path, names: list[str]) -> None:
    make_folder(tmp_path, names)
    open_source(str(tmp_path), "train")
    with pytest.raises(MissingSplit, match="has no val split: put the images into"):
        open_source(str(tmp_path), "val")


def test_a_class_named_train_is_no_split_but_test_images_stay_out(tmp_path: Path) -> None:
    classes = make_folder(tmp_path / "classes", ["train/1.png", "plane/2.png"])
    assert len(open_source(str(classes), "train")) == 2
    splits = make_folder(tmp_path / "splits", ["train/1.png", "test/2.png"])
    assert len(open_source(str(splits), "train")) == 1


def test_links_are_followed_once_around_a_loop(tmp_path: Path) -> None:
    make_folder(tmp_path / "set", ["a/1.png"])
    make_folder(tmp_path / "elsewhere", ["2.png"])
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    assert list(ImageFolder(tmp_path / "set", "train").identifiers) == ["a/1.png", "b/2.png"]


def test_missing_empty_and_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_source(str(tmp_path / "nowhere"), "train")
    with pytest.raises(ValueError, match=r"holds no image: looked for \.bmp, \.jpeg"):
        open_source(str(tmp_path), "train")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file"):
        open_source(str(tmp_path / "file.png"), "train")


def test_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    make_folder(tmp_path, ["1.png", "2.png"])
    before = ImageFolder(tmp_path, "train").fingerprint()
    assert ImageFolder(tmp_path, "train").fingerprint() == before
    os.utime(tmp_path / "1.png", ns=(0, 0))
    touched = ImageFolder(tmp_path, "train").fingerprint()
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    assert len({before, touched, ImageFolder(tmp_path, "train").fingerprint()}) == 3


def idx(shape: tuple[int, ...], values: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + values


def test_parse_idx() -> None:
    parsed = parse_idx(idx((2, 1, 3), bytes(range(6))), dimensions=3)
    np.testing.assert_array_equal(parsed, np.arange(6, dtype=np.uint8).reshape(2, 1, 3))


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(1, 3))
def test_parse_idx_refuses_or_parses_but_never_crashes(data: bytes, dimensions: int) -> None:
    try:
        parsed = parse_idx(data, dimensions)
    except ValueError:
        return
    assert idx(parsed.shape, parsed.tobytes()) == data


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.data())
def test_parse_idx_refuses_every_truncation(sizes: list[int], data: st.DataObject) -> None:
    whole = idx(tuple(sizes), bytes(int(np.prod(sizes))))
    assert parse_idx(whole, len(sizes)).shape == tuple(sizes)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match="IDX file"):
        parse_idx(whole[:cut], len(sizes))


def test_without_files_and_network_the_ways_out_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / "system", tmp_path / "cache"]
    with pytest.raises(ValueError, match="cannot be fetched") as raised:
        FashionMNIST("val", folders, url="http://127.0.0.1:9/")
    for word in ("t10k-images-idx3-ubyte.gz", "dataset-fashion-mnist", str(tmp_path / "cache")):
        assert word in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"other"), gzip.compress(b"cut short")[:-9]])
def test_files_that_are_not_fashion_mnist_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is (damaged|not that file)"):
        FashionMNIST("val", [tmp_path])


@needs_fashion_mnist
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("val", 10_000)])
def test_fashion_mnist(split: str, count: int) -> None:
    source = open_source("fashion-mnist", split)
    assert len(source) == len(set(source.identifiers)) == count
    image, label = source.read(count - 1)
    assert image.shape == (28, 28, 3) and image.dtype == np.uint8 and image.max() > 0
    assert 0 <= label < len(source.label_names) == 10


@needs_fashion_mnist
def test_fashion_mnist_is_fetched_into_the_last_folder_and_found_there(tmp_path: Path) -> None:
    handler = functools.partial(_Quiet, directory=str(FASHION_MNIST_DEBIAN_FOLDER))
    folders = [tmp_path / "system", tmp_path / "cache"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetched = FashionMNIST("val", folders, url=f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
    assert len(list(folders[1].iterdir())) == 2
    found = FashionMNIST("val", folders, url="http://127.0.0.1:9/")
    np.testing.assert_array_equal(found.read(7).image, fetched.read(7).image)


@needs_fashion_mnist
def test_a_wrong_download_leaves_no_file(tmp_path: Path) -> None:
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    labels = FASHION_MNIST_DEBIAN_FOLDER / "t10k-labels-idx1-ubyte.gz"
    shutil.copy(labels, served / "t10k-images-idx3-ubyte.gz")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match="is not that file"):
            FashionMNIST("val", [cache], url=f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
    assert not cache.exists() or not list(cache.iterdir())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass
