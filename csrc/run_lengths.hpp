// Masks to COCO run lengths.
#pragma once

#include <cstdint>
#include <vector>

#include "bit_mask.hpp"

namespace sgdm {

// Down the columns, zeros first; no count but the first is zero.
std::vector<std::uint32_t> counts_of(const BitMask& mask, std::int64_t width);

}  // namespace sgdm
