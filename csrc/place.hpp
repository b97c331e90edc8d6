// Where bad input was found. Every refusal is a std::invalid_argument that names image, object and value.
#pragma once

#include <cstdint>
#include <string>

namespace sgdm {

struct Place {
    std::int64_t image;
    std::int64_t object = -1;  // -1: the image as a whole
};

[[noreturn]] void refuse(const Place& place, const std::string& fault);

// A coordinate as messages show it: all the digits that matter, no more.
std::string number(double value);

}  // namespace sgdm
