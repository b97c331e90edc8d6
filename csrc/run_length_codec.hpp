// COCO's compressed run lengths: each count as a little-endian number in base 32, one printable character a digit.
// From the fourth on, a count is stored as its difference to the one two places before.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "place.hpp"

namespace sgdm {

// The counts of a text, in `counts`' memory, which only ever grows. Throws for characters that are no digits, a text
// that ends within a number, and counts that are negative or do not fit 32 bits.
std::span<const std::uint32_t> read_counts(std::span<const std::uint8_t> text, const Place& place,
                                           std::vector<std::uint32_t>& counts);

// Appends the counts' text.
void write_counts(std::span<const std::uint32_t> counts, std::string& text);

}  // namespace sgdm
