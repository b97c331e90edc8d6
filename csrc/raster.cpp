#include "raster.hpp"

#include <algorithm>
#include <cassert>
#include <stdexcept>
#include <string>

namespace sgdm {

namespace {

std::size_t clip(std::int32_t coordinate, std::size_t size) {
    return std::min(static_cast<std::size_t>(std::max(coordinate, 0)), size);
}

void check_boxes(std::span<const Box> boxes) {
    for (std::size_t image = 0; image < boxes.size(); ++image) {
        const Box& box = boxes[image];
        if (box.x1 < box.x0 || box.y1 < box.y0) {
            throw std::invalid_argument("box of image " + std::to_string(image) + " ends before it starts: x0=" +
                                        std::to_string(box.x0) + " y0=" + std::to_string(box.y0) +
                                        " x1=" + std::to_string(box.x1) + " y1=" + std::to_string(box.y1) +
                                        "; give (x0, y0, x1, y1), not (x, y, width, height)");
        }
    }
}

}  // namespace

void rasterize_boxes(std::span<const Box> boxes, std::size_t height, std::size_t width, std::span<std::uint8_t> masks) {
    assert(masks.size() == boxes.size() * height * width);
    check_boxes(boxes);
    std::fill(masks.begin(), masks.end(), std::uint8_t{0});
    std::uint8_t* mask = masks.data();
    for (const Box& box : boxes) {
        const std::size_t x0 = clip(box.x0, width);
        const std::size_t x1 = clip(box.x1, width);
        const std::size_t y1 = clip(box.y1, height);
        for (std::size_t y = clip(box.y0, height); y < y1; ++y) {
            std::fill(mask + y * width + x0, mask + y * width + x1, std::uint8_t{1});
        }
        mask += height * width;
    }
}

}  // namespace sgdm
