import numpy as np
from numpy.typing import NDArray

class Annotations: ...
class LabelMaps: ...
class Output: ...

class Batch:
    def __init__(
        self,
        images: NDArray[np.int64],
        sizes: NDArray[np.int64],
        crops: NDArray[np.float64],
        flips: NDArray[np.uint8],
        pil_nearest: bool,
    ) -> None: ...

class Tensor:
    def __init__(self, address: int, item_size: int, bytes: int, shape: list[int], strides: list[int]) -> None: ...

def boxes(
    corners: NDArray[np.float64], image_offsets: NDArray[np.int64], class_ids: NDArray[np.int32]
) -> Annotations: ...
def polygons(
    coordinates: NDArray[np.float64],
    part_offsets: NDArray[np.int64],
    object_offsets: NDArray[np.int64],
    image_offsets: NDArray[np.int64],
    class_ids: NDArray[np.int32],
) -> Annotations: ...
def run_lengths(
    values: NDArray[np.uint32] | NDArray[np.uint8],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    image_offsets: NDArray[np.int64],
    class_ids: NDArray[np.int32],
) -> Annotations: ...
def masks(
    values: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    image_offsets: NDArray[np.int64],
    class_ids: NDArray[np.int32],
) -> Annotations: ...
def label_maps(
    values: NDArray[np.uint8] | NDArray[np.int32],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    classes: NDArray[np.int32],
    ignore: int | None,
) -> LabelMaps: ...
def labels_output(tensor: Tensor, classes: int, background: int) -> Output: ...
def channels_output(tensor: Tensor) -> Output: ...
def mask_output(tensor: Tensor) -> Output: ...
def presence_output(tensor: Tensor, height: int, width: int) -> Output: ...
def rasterize(
    annotations: Annotations | LabelMaps, batch: Batch, output: Output, overlap: str, threads: int
) -> None: ...
def encode(
    annotations: Annotations, batch: Batch, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...
def compress(counts: NDArray[np.uint32], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...
def uncompress(text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
