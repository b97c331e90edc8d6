// A tensor of the caller's, and the checks that it can be written as one of the outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "output.hpp"

namespace sgdm {

struct Tensor {
    std::uintptr_t address;
    std::int64_t item_size;  // 1: uint8, 2: bfloat16
    std::int64_t bytes;      // from the address to the end of its memory
    std::vector<std::int64_t> shape, strides;  // in elements
};

// Each throws std::invalid_argument for a shape that is not the form's, images that are not dense (contiguous, or
// channels_last where there are channels) or overlap, an address not aligned to the elements, and too little memory.
Output labels_output(const Tensor& tensor, std::int64_t classes, std::int64_t background);
Output channels_output(const Tensor& tensor);
Output mask_output(const Tensor& tensor);
Output presence_output(const Tensor& tensor, std::int64_t height, std::int64_t width);

}  // namespace sgdm
