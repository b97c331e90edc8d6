import numpy as np
from numpy.typing import NDArray

def rasterize_boxes(boxes: NDArray[np.int32], masks: NDArray[np.uint8]) -> None: ...
