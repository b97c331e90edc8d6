// Where the edge of a shape falls between pixels: COCO's rule, shared by boxes and polygons.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "place.hpp"

namespace sgdm {

// Coordinates are snapped to fifths of a pixel.
constexpr std::int64_t kFifths = 5;
// So far from the image a coordinate can only be a mistake; and COCO's own fifths are 32-bit integers.
constexpr double kFarthest = 1 << 28;

// In fifths of a pixel. Halves go up, and towards zero where negative, which is off the image anyway.
inline std::int64_t snap(double coordinate) {
    return static_cast<std::int64_t>(static_cast<double>(kFifths) * coordinate + 0.5);
}

// The first pixel whose centre, at 5 k + 2.5 fifths, is not before the edge; 0 <= pixel <= size.
inline std::int64_t first_pixel(std::int64_t fifths, std::int64_t size) {
    return std::min((std::max<std::int64_t>(fifths, 0) + 2) / kFifths, size);
}

inline void check_coordinate(double value, const Place& place) {
    if (!(std::abs(value) <= kFarthest)) {  // NaN too
        refuse(place, "the coordinate " + number(value) + " is not finite or is farther than " +
                          number(kFarthest) + " pixels from the image");
    }
}

}  // namespace sgdm
