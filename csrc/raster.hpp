// Masks and boxes to condition tensors. Plain C++: no Python, no libtorch, no allocation per image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace sgdm {

// A box in pixels: columns x0 <= x < x1 and rows y0 <= y < y1 (half-open, as LOST and NumPy slices have it).
struct Box {
    std::int32_t x0, y0, x1, y1;
};
static_assert(sizeof(Box) == 4 * sizeof(std::int32_t), "boxes are read straight from an int32 [N, 4] array");

// One mask an image: ones inside the box, zeros elsewhere; what lies off the image is cut off.
// masks holds boxes.size() * height * width bytes, row-major. Throws std::invalid_argument, naming the
// image, for a box whose end lies before its start; nothing is written then.
void rasterize_boxes(std::span<const Box> boxes, std::size_t height, std::size_t width, std::span<std::uint8_t> masks);

}  // namespace sgdm
