"""The loader: which images come in which order, on how many ranks, from where, and that they are the right ones."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdm.data import loader as loader_module
from sgdm.data.beton import write_beton
from sgdm.data.loader import Batch, Loader, epoch_order
from sgdm.data.sources import Sample

COUNT = 43  # five global batches of eight and a rest of three


class ArraySource:
    name = "arrays"
    label_names = ("even", "odd")

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.identifiers = [str(i) for i in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> Sample:
        return Sample(self.images[i], i % 2)

    def fingerprint(self) -> str:
        return ""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.beton"
    write_beton(ArraySource(images), path, 16, split="train", workers=1)
    return path


@pytest.fixture(scope="module")
def loader(beton: Path) -> Loader:
    return Loader(beton, batch_size=8, device="cpu", seed=3)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


def flat(batches: list[Batch]) -> list[int]:
    return list(itertools.chain.from_iterable(indices(batches)))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 100))
def test_the_order_is_a_permutation_that_follows_its_arguments_alone(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    np.random.default_rng().random()
    np.testing.assert_array_equal(order, epoch_order(seed, epoch, n))
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_batches_hold_the_images_that_their_index_says(loader: Loader, images: np.ndarray) -> None:
    for batch in take(loader.train(0), 7):
        assert batch.image.dtype == torch.uint8 and batch.image.shape == (8, 3, 16, 16)
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert batch.index.dtype == batch.label.dtype == torch.int64
        assert batch.index.shape == batch.label.shape == (8,)
        np.testing.assert_array_equal(batch.image.permute(0, 2, 3, 1), images[batch.index])
        np.testing.assert_array_equal(batch.label, batch.index % 2)


def test_batches_follow_the_order_of_each_epoch_without_its_tail(loader: Loader) -> None:
    expected = [epoch_order(3, epoch, COUNT)[:40].reshape(5, 8).tolist() for epoch in range(3)]
    assert indices(take(loader.train(0), 15)) == [batch for epoch in expected for batch in epoch]


def test_many_short_stretches_are_one_stream(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = indices(take(loader.train(0), 15))
    monkeypatch.setattr(loader_module, "IMAGES_A_STRETCH", 2 * COUNT)
    assert indices(take(loader.train(0), 15)) == joined


@pytest.mark.parametrize("seen", [8, 32, 40, 48, 120])
def test_resuming_goes_on_as_if_uninterrupted(loader: Loader, seen: int) -> None:
    whole = take(loader.train(0), seen // 8 + 6)
    resumed = take(loader.train(seen), 6)
    for expected, found in zip(whole[seen // 8 :], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_two_ranks_of_four_are_one_rank_of_eight(beton: Path, loader: Loader) -> None:
    parts = [
        take(Loader(beton, batch_size=4, device="cpu", seed=3, rank=rank, world_size=2).train(24), 8)
        for rank in range(2)
    ]
    together = [a + b for a, b in zip(indices(parts[0]), indices(parts[1]), strict=True)]
    assert together == indices(take(loader.train(24), 8))


def test_once_gives_every_image_once_in_the_order_of_the_file(loader: Loader, images: np.ndarray) -> None:
    batches = list(loader.once())
    assert [len(batch.index) for batch in batches] == [8, 8, 8, 8, 8, 3]
    assert flat(batches) == list(range(COUNT)) == list(range(len(loader)))
    # Taken out of the list, not one by one: no batch may share memory with a later one.
    np.testing.assert_array_equal(torch.cat([batch.image for batch in batches]).permute(0, 2, 3, 1), images)


def test_select_gives_the_rows_in_the_order_asked_for(loader: Loader, images: np.ndarray) -> None:
    rows = np.array([40, 3, 3, 17, 0, 42, 8, 9, 10, 11])
    batches = list(loader.select(rows))
    assert flat(batches) == rows.tolist()
    np.testing.assert_array_equal(torch.cat([batch.image for batch in batches]).permute(0, 2, 3, 1), images[rows])


def test_train_and_once_run_side_by_side(loader: Loader) -> None:
    alone = indices(take(loader.train(0), 6))
    both = list(zip(take(loader.train(0), 6), loader.once(), strict=True))
    assert indices([pair[0] for pair in both]) == alone
    assert flat([pair[1] for pair in both]) == list(range(COUNT))


def test_jpeg_images_come_out_decoded(tmp_path: Path) -> None:
    colours = np.array([[200, 40, 40], [30, 160, 60], [20, 60, 220]], np.uint8)
    flat = np.broadcast_to(colours[:, None, None], (3, 104, 104, 3))
    write_beton(ArraySource(flat), tmp_path / "train.beton", 104, split="train", workers=1)
    (batch,) = Loader(tmp_path / "train.beton", batch_size=4, device="cpu", seed=0, threads=2).once()
    error = batch.image.permute(0, 2, 3, 1).numpy().astype(int) - flat
    assert np.abs(error).max() <= 4


def test_leaving_early_ends_the_thread(loader: Loader) -> None:
    before = threading.active_count()
    batches = loader.train(0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


def test_a_failure_while_decoding_reaches_the_reader(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("decoding failed")

    monkeypatch.setattr(loader_module._Prefetcher, "run_pipeline", fail)
    with pytest.raises(RuntimeError, match="decoding failed"):
        next(loader.once())


def test_a_data_set_smaller_than_the_global_batch(beton: Path) -> None:
    small = Loader(beton, batch_size=22, device="cpu", seed=0, world_size=2)
    with pytest.raises(ValueError, match=r"43 images, fewer than a global batch of 44: lower the batch size"):
        small.train(0)


@pytest.mark.parametrize("seen", [-8, 4, 43])
def test_a_start_between_two_batches_is_refused(loader: Loader, seen: int) -> None:
    with pytest.raises(ValueError, match=f"cannot start after {seen} images: .* global batches of 8"):
        loader.train(seen)


def test_impossible_ranks_and_batches_are_refused(beton: Path) -> None:
    with pytest.raises(ValueError, match="rank 2 is not one of the 2 ranks"):
        Loader(beton, batch_size=8, device="cpu", seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size 0"):
        Loader(beton, batch_size=0, device="cpu", seed=0)


def test_a_file_without_its_manifest_is_refused(tmp_path: Path, beton: Path) -> None:
    (tmp_path / "train.beton").write_bytes(beton.read_bytes())
    with pytest.raises(ValueError, match=r"train\.json does not exist"):
        Loader(tmp_path / "train.beton", batch_size=8, device="cpu", seed=0)


def test_torch_keeps_its_threads(beton: Path) -> None:
    """FFCV sets the number of torch's threads, when imported to one and when a loader is opened to its own."""
    program = f"""
import torch
torch.set_num_threads(3)
from pathlib import Path
from sgdm.data.loader import Loader
Loader(Path({str(beton)!r}), batch_size=8, device="cpu", seed=0)
assert torch.get_num_threads() == 3, torch.get_num_threads()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)


@pytest.mark.gpu
def test_a_host_far_ahead_of_its_gpu_still_gets_the_right_images(beton: Path, images: np.ndarray) -> None:
    loader = Loader(beton, batch_size=8, device="cuda", seed=3)
    kept = []
    for batch in itertools.islice(loader.train(0), 30):
        assert batch.image.device.type == "cuda"
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        torch.cuda._sleep(20_000_000)  # about ten milliseconds of work, which the host does not wait for
        kept.append((batch.image.permute(0, 2, 3, 1) * 1, batch.index))
    for image, index in kept:
        np.testing.assert_array_equal(image.cpu(), images[index.cpu()])
