// The caller's buffer, and how masks and labels are written into it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "bit_mask.hpp"
#include "view.hpp"

namespace sgdm {

enum class Form {
    labels,    // [B, H, W]: the class of each pixel
    channels,  // [B, K, H, W]: 1 in the channel of the pixel's class
    mask,      // [B, 1, H, W]: 1 where any object is
    presence   // [B, K]: 1 where an object of the class shows at least one pixel
};

struct Output {
    Form form;
    void* data;
    bool bfloat16;  // else uint8; labels are always uint8
    std::int64_t images, classes, height, width;
    // In elements. An image is one dense block.
    std::int64_t image_stride, image_size, channel_stride, row_stride, column_stride;
    std::uint8_t background;  // of labels
};

// The elements of one image, T is uint8_t or uint16_t (the bits of a bfloat16).
template <typename T>
class Canvas {
   public:
    Canvas(const Output& output, std::int64_t image)
        : output_(output), data_(static_cast<T*>(output.data) + image * output.image_stride) {}

    // Background everywhere.
    void clear() const;

    // An object of a class. Pixels that are occupied are left as they are, and the others become so; an empty
    // `occupied` (else of the size of the mask) lets objects overlap.
    void paint(const BitMask& mask, std::int32_t label, std::span<std::uint64_t> occupied) const;

    // One row of pixels: a class each, -1 for none.
    void write(std::int64_t row, std::span<const std::int32_t> labels) const;

   private:
    T* plane(std::int32_t label) const;
    T value(std::int32_t label) const;

    const Output& output_;
    T* data_;
};

extern template class Canvas<std::uint8_t>;
extern template class Canvas<std::uint16_t>;

}  // namespace sgdm
