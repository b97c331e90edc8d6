#include "objects.hpp"

namespace sgdm {

Range range_of(std::span<const std::int64_t> offsets, std::size_t number, std::size_t count, const char* items,
               const Place& place) {
    const std::int64_t begin = offsets[number];
    const std::int64_t end = offsets[number + 1];
    if (begin < 0 || end < begin || static_cast<std::uint64_t>(end) > count) {
        refuse(place, "its offsets " + std::to_string(begin) + " to " + std::to_string(end) + " fall or lead out of " +
                          std::to_string(count) + " " + items);
    }
    return {static_cast<std::size_t>(begin), static_cast<std::size_t>(end)};
}

void check_size(std::span<const std::int64_t> sizes, std::size_t object, const Target& target) {
    const std::int64_t height = sizes[2 * object];
    const std::int64_t width = sizes[2 * object + 1];
    if (height != target.view.height || width != target.view.width) {
        refuse(target.place, "its size is " + std::to_string(height) + " x " + std::to_string(width) +
                                 ", but the view's source is " + std::to_string(target.view.height) + " x " +
                                 std::to_string(target.view.width));
    }
}

}  // namespace sgdm
