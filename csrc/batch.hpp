// Which images a batch shows, and how; the checks that every output of a batch shares.
#pragma once

#include <cstdint>
#include <span>

#include "objects.hpp"
#include "output.hpp"
#include "view.hpp"

namespace sgdm {

// Row b of a batch shows image images[b] of the annotations through view b.
struct Batch {
    std::span<const std::int64_t> images;  // [B]
    std::span<const std::int64_t> sizes;   // [B, 2] of the sources, height and width
    std::span<const double> crops;         // [B, 4] x0 y0 x1 y1
    std::span<const std::uint8_t> flips;   // [B]
    Sampling sampling;
};

// The number of the row's image; throws where it is not one of `count`.
std::size_t image_of(const Batch& batch, std::size_t row, std::size_t count);

// The row's view, checked.
View view_of(const Batch& batch, std::size_t row, const Place& place);

// What is under the target's pixels, into scratch.rows and scratch.columns.
void sample_axes(const Target& target, Scratch& scratch);

// Throws where a side of the target is not 1 to kLongestTarget.
void check_target(Size size);

// The same for an output, and where it does not hold as many images as the batch.
void check_output(const Output& output, const Batch& batch);

// The memory of the calling thread.
Scratch& scratch_of_thread();

}  // namespace sgdm
