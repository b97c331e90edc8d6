"""Where images come from: a folder of image files, or Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import math
import os
import struct
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from sgdm.files import atomic_write

Split = Literal["train", "val"]
NO_LABEL = -1
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class UnreadableImage(ValueError):  # noqa: N818 - a fact about a file, and not an error where it is skipped
    """An image file that cannot be decoded. The message names the file and the reason."""


class MissingSplit(ValueError):  # noqa: N818 - a fact about a source, and not an error where a split is optional
    """A source has no images for the split that was asked for."""


class Sample(NamedTuple):
    image: np.ndarray  # uint8 [H, W, 3], RGB, of the size it has in the source
    label: int  # -1 where there is none; used for comparison only, never for training


class Source(Protocol):
    """A finite, ordered set of images. `read` may be called from several threads at once."""

    name: str
    identifiers: Sequence[str]  # stable from run to run, one an image
    label_names: Sequence[str]

    def __len__(self) -> int: ...

    def read(self, i: int) -> Sample:
        """Image number `i`; UnreadableImage where it cannot be decoded."""
        ...

    def fingerprint(self) -> str:
        """Changes when the images change, and costs no decoding: tells if a prepared file is still right."""
        ...


class ImageFolder:
    """All .jpg, .jpeg, .png, .webp and .bmp files below a folder, in any letter case, sorted by path.

    Identifiers are paths relative to the folder of the split. Hidden files and folders are skipped, linked
    ones are followed. The label of an image is the number of the first-level subfolder that it is in (among
    those of its split, sorted), -1 where it is in none. Where the subfolders are no classes it means nothing,
    and nothing trains on it.
    """

    def __init__(self, root: Path, split: Split) -> None:
        if not root.exists():
            raise ValueError(f"{root} does not exist: give a folder of images, or {FashionMNIST.name!r}")
        if not root.is_dir():
            raise ValueError(f"{root} is a file: give the folder that holds the images")
        self.name = root.resolve().name
        self.folder = _split_folder(root, split)
        self.identifiers: Sequence[str] = sorted(_image_paths(str(self.folder)))
        if not self.identifiers:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise ValueError(f"{self.folder} holds no image: looked for {suffixes} files at any depth")
        self.label_names: Sequence[str] = sorted({path.split("/")[0] for path in self.identifiers if "/" in path})
        self._label_of = {name: label for label, name in enumerate(self.label_names)}

    def __len__(self) -> int:
        return len(self.identifiers)

    def read(self, i: int) -> Sample:
        identifier = self.identifiers[i]
        label = self._label_of[identifier.split("/")[0]] if "/" in identifier else NO_LABEL
        return Sample(decode_image(self.folder / identifier), label)

    def fingerprint(self) -> str:
        return fingerprint_files(self.folder, self.identifiers)


def fingerprint_files(folder: Path, names: Iterable[str]) -> str:
    """Of paths, sizes and times of change, as a file that is written again changes one of them."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = (folder / name).stat()
            digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        except OSError:  # a link that points nowhere, a file that an annotation names
            digest.update(os.fsencode(f"{name}\0absent\0"))
    return digest.hexdigest()


def _split_folder(root: Path, split: Split) -> Path:
    """The folder of a split. A lone class named "train" among others is not taken for one."""
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    has_splits = "train" in folders and ("val" in folders or folders <= {"train", "test"})
    if has_splits and split in folders:
        return root / split
    if not has_splits and split == "train":
        return root
    raise MissingSplit(f"{root} has no {split} split: put the images into {root / 'train'} and {root / 'val'}")


def _image_paths(folder: str, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Relative POSIX paths of all image files, in no order. A link back to a folder above is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _image_paths(entry.path, f"{prefix}{entry.name}/", above | {real})
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            yield prefix + entry.name


def decode_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]. The first frame, turned by its EXIF orientation; colour profiles are not applied."""
    try:
        with Image.open(path) as opened:
            return np.asarray(_to_rgb(ImageOps.exif_transpose(opened)))
    except Exception as error:  # a decoder that is fed a damaged file may raise anything
        raise UnreadableImage(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits. Transparent parts show white; 16-bit grey is scaled, where Pillow would clip it at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32) / 257.0
        return Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist

# SHA-256 of the uncompressed files, since each distributor compresses them anew.
_IMAGES: dict[Split, tuple[str, str]] = {
    "train": (
        "train-images-idx3-ubyte.gz",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "val": ("t10k-images-idx3-ubyte.gz", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
}
_LABELS: dict[Split, tuple[str, str]] = {
    "train": (
        "train-labels-idx1-ubyte.gz",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "val": ("t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
_LARGEST_FILE = 64 << 20  # uncompressed; a file that claims more is refused before it fills the memory


class FashionMNIST:
    """60,000 (train) or 10,000 (val) grey images of clothes, 28x28, in ten classes (arXiv 1708.07747).

    Files are taken from the first of `folders` that has them, else fetched from `url` into the last, and
    checked against fixed digests either way.
    """

    name = "fashion-mnist"
    label_names: Sequence[str] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )

    def __init__(self, split: Split, folders: Sequence[Path], url: str = FASHION_MNIST_URL) -> None:
        image_data = _fashion_mnist_file(*_IMAGES[split], folders, url)
        label_data = _fashion_mnist_file(*_LABELS[split], folders, url)
        self._images = parse_idx(image_data, dimensions=3)
        self._labels = parse_idx(label_data, dimensions=1)
        self._fingerprint = hashlib.sha256(image_data).hexdigest()
        self.identifiers: Sequence[str] = [f"{i:05d}" for i in range(len(self._images))]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> Sample:
        return Sample(np.repeat(self._images[i, :, :, None], 3, axis=2), int(self._labels[i]))

    def fingerprint(self) -> str:
        return self._fingerprint


def parse_idx(data: bytes, dimensions: int) -> np.ndarray:
    """uint8 array of an IDX file: 0, 0, 8 (bytes), number of dimensions, sizes (big endian), values."""
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"not an IDX file of unsigned bytes with {dimensions} dimensions: it begins {data[:4].hex()!r}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"IDX file of shape {shape} must have {expected} bytes, has {len(data)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _fashion_mnist_file(file_name: str, sha256: str, folders: Sequence[Path], url: str) -> bytes:
    """The uncompressed content of one of the four files."""
    for folder in folders:
        if (folder / file_name).exists():
            return _uncompress((folder / file_name).read_bytes(), sha256, name=str(folder / file_name))
    try:
        with urllib.request.urlopen(url + file_name, timeout=30) as response:
            compressed = response.read(_LARGEST_FILE)
    except (OSError, http.client.HTTPException) as error:
        looked_in = ", ".join(map(str, folders))
        raise ValueError(
            f"{file_name} is in none of {looked_in}, and {url + file_name} cannot be fetched ({error}): "
            f"install the Debian package dataset-fashion-mnist, or put the file into {folders[-1]}"
        ) from error
    data = _uncompress(compressed, sha256, name=url + file_name)
    with atomic_write(folders[-1] / file_name) as temporary:
        temporary.write_bytes(compressed)
    return data


def _uncompress(compressed: bytes, sha256: str, name: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(compressed)) as file:
            data = file.read(_LARGEST_FILE)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is damaged ({error}): replace it by an intact copy") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{name} is not that file of Fashion-MNIST: its content has SHA-256 {found}, not {sha256}")
    return data
