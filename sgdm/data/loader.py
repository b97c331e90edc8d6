"""Batches of a .beton file on a device, in an order that depends on the seed alone.

FFCV maps the file and decodes ahead in a thread. Of its features these are not used: its random orders, which
know neither ranks nor resuming, and its copy to the device, which does not wait for the copy out of a host
buffer before that buffer is filled again, so a host far ahead of its GPU would train on wrong images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import ffcv
import numba
import numpy as np
import torch
from ffcv.loader.epoch_iterator import EpochIterator

from sgdm.data.beton import check_beton

# Starting FFCV's thread takes 20 ms; epochs of small data sets are joined so that it is not felt.
IMAGES_A_STRETCH = 1 << 16


class Batch(NamedTuple):
    """Tensors of their own: they stay as they are when the next batch comes."""

    image: torch.Tensor  # uint8 [B, 3, H, W] in channels_last memory
    index: torch.Tensor  # type: ignore[assignment]  # int64 [B], row in the file; hides tuple.index
    label: torch.Tensor  # int64 [B], -1 where there is none
    rows: torch.Tensor  # the index again, on the host


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """int64 [count]: a permutation that depends on its arguments alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class Loader:
    """Reads a .beton file, on one of `world_size` ranks whose batches of `batch_size` make up a global batch.

    Global batch number g of an epoch is the positions g * global_batch and on of `epoch_order`; each rank takes
    its contiguous part, so the stream of images depends on the global batch and not on how many ranks share
    it. Images at the end of an epoch that do not fill a global batch are left out.

    `threads` decode, at most one a core: raw images are copied fast enough by one, JPEG gains from more.
    Opening compiles FFCV's pipeline for about two seconds, so one loader should live as long as its process.
    ValueError where the file is not whole.
    """

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is not possible: choose 1 or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of the {world_size} ranks 0 to {world_size - 1}")
        self.path = path
        self.manifest = check_beton(path)
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        self.device = torch.device(device)
        self._seed = seed
        self._rank = rank
        self._copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        threads = min(threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        torch_threads = torch.get_num_threads()
        self._ffcv = ffcv.Loader(str(path), batch_size, num_workers=threads, os_cache=True, seed=seed)
        torch.set_num_threads(torch_threads)  # FFCV has set them to its own

    def __len__(self) -> int:
        """Number of images."""
        return self.manifest.count

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: the label of each image, -1 where there is none, without decoding any."""
        return (
            self._ffcv.reader.metadata[f"f{list(self._ffcv.reader.handlers).index('label')}"].astype(np.int64).ravel()
        )

    def train(self, start_image: int) -> Iterator[Batch]:
        """This rank's batches without end, after `start_image` images of all ranks together have been seen.

        ValueError where the images do not fill a global batch, or `start_image` is not between two of them.
        """
        batches_an_epoch = len(self) // self.global_batch
        if not batches_an_epoch:
            raise ValueError(
                f"{self.path} has {len(self)} images, fewer than a global batch of {self.global_batch}: "
                "lower the batch size or prepare more images"
            )
        if start_image < 0 or start_image % self.global_batch:
            raise ValueError(
                f"cannot start after {start_image} images: not a whole number of global batches of "
                f"{self.global_batch}; go on with the global batch that the run began with"
            )
        return self._train(start_image // self.global_batch, batches_an_epoch)

    def global_rows(self, start_image: int) -> np.ndarray:
        """int64 [global_batch]: rows of the global batch that begins after `start_image` images, of all ranks."""
        epoch, batch = divmod(start_image // self.global_batch, len(self) // self.global_batch)
        return epoch_order(self._seed, epoch, len(self))[batch * self.global_batch : (batch + 1) * self.global_batch]

    def once(self) -> Iterator[Batch]:
        """All images of the file in its order, each once, whatever the rank; the last batch may be short."""
        return self.select(np.arange(len(self)))

    def select(self, rows: np.ndarray) -> Iterator[Batch]:
        """The images of `rows` (int64 [n], 0 .. N-1), in this order, whatever the rank; the last batch may be short."""
        return self._batches(rows)

    def _train(self, step: int, batches_an_epoch: int) -> Iterator[Batch]:
        epochs_a_stretch = max(1, IMAGES_A_STRETCH // len(self))
        while True:
            epoch, first_batch = divmod(step, batches_an_epoch)
            epochs = range(epoch, epoch + epochs_a_stretch)
            order = np.concatenate([self._rank_part(e, batches_an_epoch) for e in epochs])[first_batch:]
            yield from self._batches(order.reshape(-1))
            step += len(order)

    def _rank_part(self, epoch: int, batches_an_epoch: int) -> np.ndarray:
        """int64 [batches, batch_size]: what this rank reads in an epoch."""
        order = epoch_order(self._seed, epoch, len(self))[: batches_an_epoch * self.global_batch]
        return order.reshape(batches_an_epoch, -1, self.batch_size)[:, self._rank]

    def _batches(self, order: np.ndarray) -> Iterator[Batch]:
        prefetcher = _Prefetcher(self._ffcv, order.astype(np.uint64))
        try:
            for image, index, label in prefetcher:
                # A height x width x channels image is an image in channels_last memory.
                yield self._copy(image.permute(0, 3, 1, 2), index.squeeze(1), label.squeeze(1))
            if prefetcher.failure:
                raise prefetcher.failure
        finally:
            prefetcher.stop()

    def _copy(self, image: torch.Tensor, index: torch.Tensor, label: torch.Tensor) -> Batch:
        """To the device, out of FFCV's buffers, which are filled anew as soon as the next batch is asked for.

        A blocking copy on a stream of its own waits for the copy alone, not for what the GPU computes.
        """
        with torch.cuda.stream(self._copy_stream):
            parts = [part.to(self.device, copy=True) for part in (image, index, label)]
        if self._copy_stream is not None:
            for part in parts:
                part.record_stream(torch.cuda.current_stream(self.device))
        return Batch(parts[0], parts[1], parts[2], index.clone())


class _Prefetcher(EpochIterator):
    """FFCV's thread, made to end: on a failure, where it would leave its reader waiting, and when told to."""

    failure: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.failure = error
            self.output_queue.put(None)

    def stop(self) -> None:
        self.iter_ixes: Iterator[Any] = iter(())
        while self.is_alive():  # it may be waiting to put a batch into a full queue
            with suppress(Empty):
                self.output_queue.get(timeout=0.05)
        self.close()
