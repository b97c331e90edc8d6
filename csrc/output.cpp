#include "output.hpp"

#include <algorithm>
#include <bit>

namespace sgdm {

namespace {

// One in uint8 and in bfloat16.
template <typename T>
constexpr T kOne = sizeof(T) == 1 ? 1 : 0x3F80;

// Writes `value` where bits are set; masks are made of few long runs, so run by run.
template <typename T>
void write_bits(std::uint64_t bits, T* target, std::int64_t stride, T value) {
    while (bits != 0) {
        const int begin = std::countr_zero(bits);
        const int length = std::countr_one(bits >> begin);
        T* run = target + begin * stride;
        if (stride == 1) {
            std::fill_n(run, length, value);
        } else {
            for (int i = 0; i < length; ++i, run += stride) {
                *run = value;
            }
        }
        const int end = begin + length;
        bits = end == 64 ? 0 : bits & (~std::uint64_t{0} << end);
    }
}

}  // namespace

template <typename T>
void Canvas<T>::clear() const {
    const bool labels = output_.form == Form::labels;
    std::fill_n(data_, output_.image_size, labels ? static_cast<T>(output_.background) : T{0});
}

template <typename T>
T* Canvas<T>::plane(std::int32_t label) const {
    const bool by_class = output_.form == Form::channels || output_.form == Form::presence;
    return by_class ? data_ + label * output_.channel_stride : data_;
}

template <typename T>
T Canvas<T>::value(std::int32_t label) const {
    return output_.form == Form::labels ? static_cast<T>(label) : kOne<T>;
}

template <typename T>
void Canvas<T>::paint(const BitMask& mask, std::int32_t label, std::span<std::uint64_t> occupied) const {
    T* const target = plane(label);
    const T written = value(label);
    for (std::int64_t row = mask.begin_row(); row < mask.end_row(); ++row) {
        const std::span<const std::uint64_t> words = mask.row(row);
        for (std::size_t word = 0; word < words.size(); ++word) {
            std::uint64_t visible = words[word];
            if (!occupied.empty()) {
                std::uint64_t& taken = occupied[static_cast<std::size_t>(row) * words.size() + word];
                visible &= ~taken;
                taken |= visible;
            }
            if (visible == 0) {
                continue;
            }
            if (output_.form == Form::presence) {
                *target = written;
                return;
            }
            const std::int64_t column = 64 * static_cast<std::int64_t>(word);
            T* const pixels = target + row * output_.row_stride + column * output_.column_stride;
            write_bits(visible, pixels, output_.column_stride, written);
        }
    }
}

template <typename T>
void Canvas<T>::write(std::int64_t row, std::span<const std::int32_t> labels) const {
    for (std::size_t column = 0; column < labels.size(); ++column) {
        const std::int32_t label = labels[column];
        if (label < 0) {
            continue;
        }
        T* const target = plane(label);
        if (output_.form == Form::presence) {
            *target = kOne<T>;
        } else {
            target[row * output_.row_stride + static_cast<std::int64_t>(column) * output_.column_stride] = value(label);
        }
    }
}

template class Canvas<std::uint8_t>;
template class Canvas<std::uint16_t>;

}  // namespace sgdm
