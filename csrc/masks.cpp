#include "objects.hpp"

namespace sgdm {

void draw(const Masks& masks, std::size_t object, const Target& target, Scratch& scratch) {
    check_size(masks.sizes, object, target);
    const Range range = range_of(masks.offsets, object, masks.pixels.size(), "pixels", target.place);
    const auto width = static_cast<std::size_t>(target.view.width);
    const std::size_t pixels = static_cast<std::size_t>(target.view.height) * width;
    if (range.size() != pixels) {
        refuse(target.place, "its offsets hold " + std::to_string(range.size()) + " pixels, its size " +
                                 std::to_string(pixels));
    }
    for (std::int64_t row = 0; row < target.height; ++row) {
        const auto source_row = static_cast<std::size_t>(scratch.rows.source[static_cast<std::size_t>(row)]);
        const std::uint8_t* const source = masks.pixels.data() + range.begin + source_row * width;
        const std::span<std::uint64_t> bits = scratch.object.open_row(row);
        for (std::int64_t column = 0; column < target.width; ++column) {
            const std::int64_t shown = target.view.flip ? target.width - 1 - column : column;
            const auto inside = static_cast<std::uint64_t>(
                source[scratch.columns.source[static_cast<std::size_t>(shown)]] != 0);
            bits[static_cast<std::size_t>(column >> 6)] |= inside << (column & 63);
        }
    }
}

}  // namespace sgdm
