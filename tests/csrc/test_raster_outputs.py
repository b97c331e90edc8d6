"""Forms, layouts and types of the output, policies of overlap, threads and forks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from sgdm.ragged import Boxes, Polygons, RunLengths, Views
from sgdm.raster import encode, rasterize_channels, rasterize_labels, rasterize_mask, rasterize_presence

# A large box, a small one over its corner, one that hides in the first, one off the image.
OVERLAPPING = Boxes.of([[[0, 0, 4, 4], [3, 3, 5, 5], [1, 1, 2, 2], [9, 9, 12, 12]]], [[0, 1, 2, 3]])


def labels(overlap: str) -> list[list[int]]:
    out = torch.empty(1, 6, 6, dtype=torch.uint8)
    rasterize_labels(OVERLAPPING, Views.of([[6, 6]]), out, num_classes=4, background=9, overlap=overlap)
    return out[0].tolist()


def many_polygons(images: int) -> tuple[Polygons, Views]:
    rng = np.random.default_rng(3)
    shapes = [[[rng.uniform(-50, 690, 24)] for _ in range(rng.integers(0, 9))] for _ in range(images)]
    class_ids = [rng.integers(0, 20, len(objects)) for objects in shapes]
    return Polygons.of(shapes, class_ids), Views.of(np.tile([480, 640], (images, 1)), flips=rng.random(images) < 0.5)


def test_policies_of_overlap() -> None:
    last, first, largest = labels("last"), labels("first"), labels("largest-last")
    assert (last[0][0], last[3][3], last[1][1], last[4][4], last[5][5]) == (0, 1, 2, 1, 9)
    assert (first[0][0], first[3][3], first[1][1], first[4][4], first[5][5]) == (0, 0, 0, 1, 9)
    assert largest == first


def test_of_equally_large_objects_the_later_shows() -> None:
    boxes = Boxes.of([[[0, 0, 2, 2], [1, 0, 3, 2]]], [[0, 1]])
    out = torch.empty(1, 2, 3, dtype=torch.uint8)
    rasterize_labels(boxes, Views.of([[2, 3]]), out, num_classes=2, overlap="largest-last")
    assert out[0, 0].tolist() == [0, 1, 1]


def test_hidden_objects_are_present_and_those_off_the_view_are_not() -> None:
    boxes = Boxes.of([[[1, 1, 2, 2], [0, 0, 4, 4], [9, 9, 12, 12]]], [[2, 0, 3]])
    out = rasterize_presence(boxes, Views.of([[6, 6]]), torch.empty(1, 4, dtype=torch.uint8), size=(6, 6))
    assert out.tolist() == [[1, 0, 1, 0]]


def test_multi_hot_shows_all() -> None:
    channels = torch.empty(1, 4, 6, 6, dtype=torch.uint8)
    rasterize_channels(OVERLAPPING, Views.of([[6, 6]]), channels, overlap="multi-hot")
    assert channels[0, :, 1, 1].tolist() == [1, 0, 1, 0]
    assert channels.sum().item() == 16 + 4 + 1
    rasterize_channels(OVERLAPPING, Views.of([[6, 6]]), channels)
    assert channels.sum().item() == 19 and channels.amax().item() == 1


@pytest.mark.parametrize("classes", [1, 20])
def test_layouts_and_types_hold_the_same_values(classes: int) -> None:
    polygons, views = many_polygons(6)
    polygons = Polygons(**{**vars(polygons), "class_ids": polygons.class_ids % classes})
    plain = torch.empty(6, classes, 33, 70, dtype=torch.uint8)
    rasterize_channels(polygons, views, plain, overlap="multi-hot")
    for dtype in (torch.uint8, torch.bfloat16):
        out = torch.full((6, classes, 33, 70), 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
        rasterize_channels(polygons, views, out, overlap="multi-hot")
        assert torch.equal(out, plain.to(dtype))


def test_writes_nothing_beside_its_images() -> None:
    """Into every other image of a larger buffer, with a margin."""
    polygons, views = many_polygons(3)
    buffer = torch.full((3, 2, 9 * 13 + 5), 123, dtype=torch.uint8)
    out = buffer[:, 0, 5:].view(3, 9, 13)
    rasterize_labels(polygons, views, out, num_classes=20)
    assert (buffer[:, 1] == 123).all() and (buffer[:, 0, :5] == 123).all()
    assert torch.equal(out, rasterize_labels(polygons, views, torch.empty(3, 9, 13, dtype=torch.uint8), num_classes=20))


def test_images_are_taken_by_number() -> None:
    polygons, views = many_polygons(8)
    every = rasterize_labels(polygons, views, torch.empty(8, 16, 16, dtype=torch.uint8), num_classes=20)
    chosen = np.array([5, 0, 5])
    some = Views(sizes=views.sizes[chosen], crops=views.crops[chosen], flips=views.flips[chosen])
    out = torch.empty(3, 16, 16, dtype=torch.uint8)
    rasterize_labels(polygons, some, out, num_classes=20, images=chosen)
    assert torch.equal(out, every[chosen])


def test_no_images() -> None:
    nothing = torch.empty(0, 4, 4, dtype=torch.uint8)
    assert rasterize_labels(Boxes.of([]), Views.of([]), nothing, num_classes=2).shape == (0, 4, 4)
    assert encode(Polygons.of([]), Views.of([]), size=(4, 4)).num_images == 0


def test_annotations_read_from_a_memory_map(tmp_path: os.PathLike[str]) -> None:
    polygons, views = many_polygons(4)
    segments = encode(polygons, Views.of(views.sizes), size=(480, 640))
    np.save(f"{tmp_path}/values.npy", segments.values)
    mapped = RunLengths(**{**vars(segments), "values": np.load(f"{tmp_path}/values.npy", mmap_mode="r")})
    out = torch.empty(2, 4, 64, 64, dtype=torch.uint8)
    rasterize_labels(segments, views, out[0], num_classes=20)
    rasterize_labels(mapped, views, out[1], num_classes=20)
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_change_no_byte(threads: int) -> None:
    polygons, views = many_polygons(200)
    one, several = torch.empty(2, 200, 64, 64, dtype=torch.uint8)
    rasterize_labels(polygons, views, one, num_classes=20, overlap="largest-last")
    for _ in range(5):
        several.fill_(3)
        rasterize_labels(polygons, views, several, num_classes=20, overlap="largest-last", threads=threads)
        assert torch.equal(one, several)


def test_threads_report_the_first_fault() -> None:
    polygons, views = many_polygons(200)
    for image in (150, 90, 91):
        polygons.coordinates[polygons.part_offsets[polygons.object_offsets[polygons.image_offsets[image]]]] = np.nan
    out = torch.empty(200, 64, 64, dtype=torch.uint8)
    first = next(n for n in (90, 91, 150) if polygons.image_offsets[n] < polygons.image_offsets[n + 1])
    for threads in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"image {first}, object 0: the coordinate nan"):
            rasterize_labels(polygons, views, out, num_classes=20, threads=threads)


def test_callers_in_several_threads() -> None:
    polygons, views = many_polygons(50)
    expected = rasterize_mask(polygons, views, torch.empty(50, 1, 32, 32, dtype=torch.uint8))
    outs = [torch.empty_like(expected) for _ in range(4)]

    def work(out: torch.Tensor) -> None:
        for _ in range(20):
            rasterize_mask(polygons, views, out, threads=2)

    callers = [threading.Thread(target=work, args=(out,)) for out in outs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(out, expected) for out in outs)


@pytest.mark.timeout(60)
def test_forked_processes_have_threads_of_their_own() -> None:
    """As the workers of a DataLoader, forked while another thread is rasterizing."""
    polygons, views = many_polygons(50)
    expected = rasterize_mask(polygons, views, torch.empty(50, 1, 32, 32, dtype=torch.uint8), threads=2)
    stop = threading.Event()

    def work() -> None:
        out = torch.empty_like(expected)
        while not stop.is_set():
            rasterize_mask(polygons, views, out, threads=2)

    busy = threading.Thread(target=work)
    busy.start()
    try:
        for _ in range(10):
            out = torch.zeros_like(expected)  # here: torch's own threads do not survive a fork
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    rasterize_mask(polygons, views, out, threads=3)
                    status = 0 if np.array_equal(out.numpy(), expected.numpy()) else 2
                finally:
                    os._exit(status)  # whatever happened, the tests go on in one process only
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        busy.join()


@pytest.mark.gpu
def test_pinned_memory_holds_the_same_bytes() -> None:
    polygons, views = many_polygons(50)
    pageable = torch.empty(50, 64, 64, dtype=torch.uint8)
    pinned = torch.empty(50, 64, 64, dtype=torch.uint8, pin_memory=True)
    rasterize_labels(polygons, views, pageable, num_classes=20)
    rasterize_labels(polygons, views, pinned, num_classes=20, threads=2)
    assert torch.equal(pageable, pinned)
