// What of a source image an output shows: crop, scale and horizontal flip.
//
// Vertices and boxes are moved by one affine map and rasterised in the target grid. Sources made of pixels are
// sampled: each target pixel takes the source pixel under its centre.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "place.hpp"

namespace sgdm {

// Target pixels an image side; source pixels an image side (their sampling is exact to there, see sample_axis).
constexpr std::int64_t kLongestTarget = 1 << 15;
constexpr std::int64_t kLongestSource = 1 << 20;

struct Size {
    std::int64_t height, width;
};

enum class Sampling {
    centre,      // floor(x0 + (2 i + 1) * crop / (2 n)): for whole numbers the exact integer rule
    pil_nearest  // image.crop(...).resize(..., NEAREST) of Pillow, whose sums of doubles drift
};

struct View {
    std::int64_t height, width;  // of the source
    double x0, y0, x1, y1;       // the crop, half-open, in pixels of the source
    bool flip;                   // left to right, after the crop
};

// Throws where the source has no pixels, or the crop is empty, not finite or not inside of the source.
void check_view(const View& view, const Place& place);

// target = offset + scale * (source - origin)
struct Affine {
    double origin, scale, offset;
    double operator()(double source) const { return offset + scale * (source - origin); }
};

Affine column_affine(const View& view, std::int64_t width);
Affine row_affine(const View& view, std::int64_t height);

// The source pixels under the target pixels of one axis, without flip.
struct SampledAxis {
    std::vector<std::int32_t> source;  // [target size], ascending
    std::vector<std::int32_t> first;   // [source size + 1]: the first target pixel at or after a source pixel

    // Kept from call to call: the same arguments again cost nothing.
    void sample(double begin, double end, std::int64_t source_size, std::int64_t target_size, Sampling sampling,
                const Place& place);

   private:
    double begin_ = 0, end_ = 0;
    Sampling sampling_ = Sampling::centre;
};

}  // namespace sgdm
