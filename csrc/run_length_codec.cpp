#include "run_length_codec.hpp"

#include <limits>

namespace sgdm {

namespace {

constexpr int kBits = 5;
constexpr std::int64_t kDigit = 0x1f;
constexpr std::int64_t kMore = 0x20;  // another digit follows
constexpr std::int64_t kSign = 0x10;  // in the last digit
constexpr std::uint8_t kZero = '0';
constexpr int kMostBits = 7 * kBits;  // a difference of two 32-bit counts has 33 bits and a sign

}  // namespace

std::span<const std::uint32_t> read_counts(std::span<const std::uint8_t> text, const Place& place,
                                           std::vector<std::uint32_t>& counts) {
    if (counts.size() < text.size()) {
        counts.resize(text.size());
    }
    std::size_t number = 0;
    std::int64_t value = 0;
    int bits = 0;
    for (std::size_t at = 0; at < text.size(); ++at) {
        const std::int64_t digit = text[at] - kZero;
        if (digit < 0 || digit > (kDigit | kMore)) {
            refuse(place, "character " + std::to_string(at) + " of its run lengths has the code " +
                              std::to_string(text[at]) + ", which is no digit of COCO's (48 to 111)");
        }
        value |= (digit & kDigit) << bits;
        bits += kBits;
        if (digit & kMore) {
            if (bits == kMostBits) {
                refuse(place, "count " + std::to_string(number) + " of its run lengths has too many digits");
            }
            continue;
        }
        value -= (digit & kSign) << (bits - kBits + 1);
        value += number > 2 ? counts[number - 2] : 0;
        if (value < 0 || value > std::numeric_limits<std::uint32_t>::max()) {
            refuse(place, "count " + std::to_string(number) + " of its run lengths is " + std::to_string(value) +
                              "; counts are 0 to 4294967295");
        }
        counts[number++] = static_cast<std::uint32_t>(value);
        value = 0;
        bits = 0;
    }
    if (bits != 0) {
        refuse(place, "its run lengths end within count " + std::to_string(number));
    }
    return {counts.data(), number};
}

void write_counts(std::span<const std::uint32_t> counts, std::string& text) {
    for (std::size_t number = 0; number < counts.size(); ++number) {
        std::int64_t value = counts[number];
        if (number > 2) {
            value -= counts[number - 2];
        }
        bool more = true;
        while (more) {
            std::int64_t digit = value & kDigit;
            value >>= kBits;
            more = value != ((digit & kSign) ? -1 : 0);
            if (more) {
                digit |= kMore;
            }
            text.push_back(static_cast<char>(digit + kZero));
        }
    }
}

}  // namespace sgdm
