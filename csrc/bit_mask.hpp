// A mask of one bit a pixel, drawn by its outline: a toggle flips the rest of its column, from its row down.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sgdm {

class BitMask {
   public:
    // Clears, and gives it this size. Memory once had is kept.
    void reset(std::int64_t height, std::int64_t width) {
        clear();
        height_ = height;
        words_ = static_cast<std::size_t>(width + 63) / 64;
        // One row more, for toggles on the lower edge.
        const std::size_t needed = static_cast<std::size_t>(height + 1) * words_;
        if (bits_.size() < needed) {
            bits_.resize(needed);
        }
        begin_ = height;
        end_ = 0;
    }

    // 0 <= row <= height. Each column needs an even number of toggles before fill_down.
    void toggle(std::int64_t row, std::int64_t column) {
        extend(row);
        data(row)[column >> 6] ^= std::uint64_t{1} << (column & 63);
    }

    // The columns begin <= column < end of a row.
    void toggle_columns(std::int64_t row, std::int64_t begin, std::int64_t end) {
        if (begin >= end) {
            return;
        }
        extend(row);
        std::uint64_t* const words = data(row);
        const std::int64_t last = (end - 1) >> 6;
        std::uint64_t bits = ~std::uint64_t{0} << (begin & 63);
        for (std::int64_t word = begin >> 6; word < last; ++word) {
            words[word] ^= bits;
            bits = ~std::uint64_t{0};
        }
        words[last] ^= bits & (~std::uint64_t{0} >> (63 - ((end - 1) & 63)));
    }

    // Toggles to pixels: a running exclusive or down all columns at once, 64 in a word.
    void fill_down() {
        if (begin_ >= end_) {
            return;
        }
        std::uint64_t* above = data(begin_);
        for (std::uint64_t* words = above + words_; words != data(end_) + words_; ++words, ++above) {
            *words ^= *above;
        }
    }

    // The union with a mask of the same size; both after fill_down.
    void add(const BitMask& other) {
        begin_ = std::min(begin_, other.begin_);
        end_ = std::max(end_, other.end_);
        for (std::int64_t row = other.begin_; row < other.end_; ++row) {
            const std::span<const std::uint64_t> theirs = other.row(row);
            std::uint64_t* const ours = data(row);
            for (std::size_t word = 0; word < words_; ++word) {
                ours[word] |= theirs[word];
            }
        }
    }

    // For drawing row by row instead of by toggles.
    std::span<std::uint64_t> open_row(std::int64_t row) {
        extend(row);
        extend(row + 1);
        return {data(row), words_};
    }

    std::span<const std::uint64_t> row(std::int64_t row) const {
        return {bits_.data() + static_cast<std::size_t>(row) * words_, words_};
    }

    // All pixels lie in the rows begin_row <= row < end_row.
    std::int64_t begin_row() const { return begin_; }
    std::int64_t end_row() const { return end_; }
    std::int64_t height() const { return height_; }
    std::size_t words() const { return words_; }

   private:
    std::uint64_t* data(std::int64_t row) { return bits_.data() + static_cast<std::size_t>(row) * words_; }

    void extend(std::int64_t row) {
        begin_ = std::min(begin_, row);
        end_ = std::max(end_, row);
    }

    void clear() {
        if (begin_ <= end_ && !bits_.empty()) {
            std::fill(data(begin_), data(end_) + words_, std::uint64_t{0});
        }
    }

    std::vector<std::uint64_t> bits_;  // all zero outside of the rows begin_ to end_ inclusive
    std::int64_t height_ = 0, begin_ = 0, end_ = -1;
    std::size_t words_ = 0;
};

}  // namespace sgdm
