#include "view.hpp"

#include <algorithm>
#include <cmath>

namespace sgdm {

namespace {

void sample_centres(double begin, double crop, std::int32_t last, std::span<std::int32_t> source) {
    const double twice = 2.0 * static_cast<double>(source.size());
    for (std::size_t i = 0; i < source.size(); ++i) {
        // Dividing last keeps the quotient on the right side of every whole number (sizes are far below 2^53).
        const double centre = begin + static_cast<double>(2 * i + 1) * crop / twice;
        source[i] = std::min(static_cast<std::int32_t>(centre), last);
    }
}

// Pillow adds the step over and over, and its rounding errors with it.
void sample_as_pillow(double begin, double crop, std::int32_t last, std::span<std::int32_t> source) {
    const double step = crop / static_cast<double>(source.size());
    double centre = step * 0.5;
    for (std::int32_t& pixel : source) {
        pixel = std::min(static_cast<std::int32_t>(begin) + static_cast<std::int32_t>(centre), last);
        centre += step;
    }
}

}  // namespace

void check_view(const View& view, const Place& place) {
    if (view.height < 1 || view.width < 1 || view.height > kLongestSource || view.width > kLongestSource) {
        refuse(place, "a source of " + std::to_string(view.height) + " x " + std::to_string(view.width) +
                          " pixels; each side must be 1 to " + std::to_string(kLongestSource));
    }
    // Written so that NaN fails it.
    const bool inside = view.x0 >= 0 && view.y0 >= 0 && view.x1 > view.x0 && view.y1 > view.y0 &&
                        view.x1 <= static_cast<double>(view.width) && view.y1 <= static_cast<double>(view.height);
    if (!inside) {
        refuse(place, "the crop x0=" + number(view.x0) + " y0=" + number(view.y0) + " x1=" + number(view.x1) +
                          " y1=" + number(view.y1) + " is empty or not inside of its source of " +
                          std::to_string(view.height) + " x " + std::to_string(view.width) + " pixels");
    }
}

Affine column_affine(const View& view, std::int64_t width) {
    const double scale = static_cast<double>(width) / (view.x1 - view.x0);
    return view.flip ? Affine{view.x0, -scale, static_cast<double>(width)} : Affine{view.x0, scale, 0.0};
}

Affine row_affine(const View& view, std::int64_t height) {
    return {view.y0, static_cast<double>(height) / (view.y1 - view.y0), 0.0};
}

void SampledAxis::sample(double begin, double end, std::int64_t source_size, std::int64_t target_size,
                         Sampling sampling, const Place& place) {
    const auto sources = static_cast<std::size_t>(source_size);
    const auto targets = static_cast<std::size_t>(target_size);
    if (begin == begin_ && end == end_ && sampling == sampling_ && targets == source.size() &&
        sources + 1 == first.size()) {
        return;
    }
    if (sampling == Sampling::pil_nearest && (begin != std::floor(begin) || end != std::floor(end))) {
        refuse(place, "the crop from " + number(begin) + " to " + number(end) +
                          " is not of whole pixels, which pil_nearest needs");
    }
    source.resize(targets);
    first.resize(sources + 1);
    const auto last = static_cast<std::int32_t>(source_size - 1);
    (sampling == Sampling::centre ? sample_centres : sample_as_pillow)(begin, end - begin, last, source);

    std::size_t pixel = 0;
    for (std::size_t i = 0; i < targets; ++i) {
        for (; pixel <= static_cast<std::size_t>(source[i]); ++pixel) {
            first[pixel] = static_cast<std::int32_t>(i);
        }
    }
    std::fill(first.begin() + static_cast<std::ptrdiff_t>(pixel), first.end(), static_cast<std::int32_t>(targets));
    begin_ = begin;
    end_ = end;
    sampling_ = sampling;
}

}  // namespace sgdm
