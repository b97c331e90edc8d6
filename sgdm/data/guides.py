"""What guides each image of a prepared set: looked up and drawn for a batch while the one before it is trained on."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Empty, Queue
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdm.data.loader import Batch
from sgdm.ragged import Boxes, Polygons, RunLengths, Views
from sgdm.raster import rasterize_labels, rasterize_mask

NO_CLASS = 255
"""The label of a pixel of no class."""

Item = TypeVar("Item")


class Drawn(NamedTuple):
    """The guides of a batch, small as they travel; sgdm.conditions.make_condition makes a Condition of them."""

    cluster: Tensor | None
    """int64 [B]."""

    layout: Tensor | None
    """uint8: box masks [B, 1, H, W], or label maps [B, H, W] with NO_CLASS where there is none."""


class Guides:
    """Guides of images by their rows.

    `clusters` int [N]; `layout` boxes or polygons in units of the image, or run lengths of stored images, one image a
    row; either may be absent. Layouts are drawn as masks of `image_size`, or, where `num_segments` classes are told
    apart, as label maps.
    """

    def __init__(
        self,
        clusters: NDArray[np.integer] | None,
        layout: Boxes | Polygons | RunLengths | None,
        *,
        image_size: int,
        num_segments: int,
        device: torch.device | str,
    ) -> None:
        self._device = torch.device(device)
        self._clusters = None if clusters is None else torch.from_numpy(clusters.astype(np.int64)).to(self._device)
        self._layout, self._image_size, self._num_segments = layout, image_size, num_segments

    def draw(self, rows: NDArray[np.int64]) -> Drawn:
        """The guides of the images `rows` (int64 [B]), on the device. The host waits for no device."""
        layout = None if self._layout is None else self._draw_layout(self._layout, rows)
        if self._clusters is None:
            return Drawn(None, layout)
        index = torch.from_numpy(rows)
        if self._device.type == "cuda":
            index = index.pin_memory().to(self._device, non_blocking=True)
        return Drawn(self._clusters[index], layout)

    def _draw_layout(self, layout: Boxes | Polygons | RunLengths, rows: NDArray[np.int64]) -> Tensor:
        size, pinned = self._image_size, self._device.type == "cuda"
        # All run lengths of a set are of the stored images' size.
        source = layout.sizes[0] if isinstance(layout, RunLengths) and len(layout.sizes) else (1, 1)
        views = Views.of(np.tile(source, (len(rows), 1)))
        if self._num_segments:
            drawn = torch.empty(len(rows), size, size, dtype=torch.uint8, pin_memory=pinned)
            rasterize_labels(layout, views, drawn, num_classes=self._num_segments, background=NO_CLASS, images=rows)
        else:
            drawn = torch.empty(len(rows), 1, size, size, dtype=torch.uint8, pin_memory=pinned)
            rasterize_mask(layout, views, drawn, images=rows)
        return drawn.to(self._device, non_blocking=True)


def guided(batches: Iterator[Batch], guides: Guides) -> Iterator[tuple[Batch, Drawn]]:
    """Every batch with its guides."""
    for batch in batches:
        yield batch, guides.draw(batch.rows.numpy())


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each made by a thread while the one before it is in use. What fails there is raised here."""
    ready: Queue[tuple[Item | None, BaseException | None]] = Queue(maxsize=1)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if stopped.is_set():
                    return
            ready.put((None, StopIteration()))
        except BaseException as error:
            ready.put((None, error))
        finally:
            if hasattr(items, "close"):
                items.close()  # by the thread that runs it

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            item, failure = ready.get()
            if isinstance(failure, StopIteration):
                return
            if failure is not None:
                raise failure
            assert item is not None
            yield item
    finally:
        stopped.set()
        while worker.is_alive():  # it may wait to put an item into the full queue
            try:
                ready.get(timeout=0.05)
            except Empty:
                continue
        worker.join()
