#include "batch.hpp"

#include <stdexcept>

namespace sgdm {

View view_of(const Batch& batch, std::size_t row, const Place& place) {
    const View view{batch.sizes[2 * row],     batch.sizes[2 * row + 1], batch.crops[4 * row],
                    batch.crops[4 * row + 1], batch.crops[4 * row + 2], batch.crops[4 * row + 3],
                    batch.flips[row] != 0};
    check_view(view, place);
    return view;
}

std::size_t image_of(const Batch& batch, std::size_t row, std::size_t count) {
    const std::int64_t image = batch.images[row];
    if (image < 0 || static_cast<std::uint64_t>(image) >= count) {
        refuse({image}, "row " + std::to_string(row) + " of the batch asks for it, but there are " +
                            std::to_string(count) + " images");
    }
    return static_cast<std::size_t>(image);
}

void check_target(Size size) {
    const auto [height, width] = size;
    if (height < 1 || width < 1 || height > kLongestTarget || width > kLongestTarget) {
        throw std::invalid_argument("a target of " + std::to_string(height) + " x " + std::to_string(width) +
                                    " pixels; each side must be 1 to " + std::to_string(kLongestTarget));
    }
}

void sample_axes(const Target& target, Scratch& scratch) {
    const View& view = target.view;
    scratch.rows.sample(view.y0, view.y1, view.height, target.height, target.sampling, target.place);
    scratch.columns.sample(view.x0, view.x1, view.width, target.width, target.sampling, target.place);
}

void check_output(const Output& output, const Batch& batch) {
    check_target({output.height, output.width});
    if (static_cast<std::uint64_t>(output.images) != batch.images.size()) {
        throw std::invalid_argument("out holds " + std::to_string(output.images) + " images, but the batch has " +
                                    std::to_string(batch.images.size()));
    }
}

Scratch& scratch_of_thread() {
    thread_local Scratch scratch;
    return scratch;
}

}  // namespace sgdm
