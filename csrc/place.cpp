#include "place.hpp"

#include <array>
#include <cstdio>
#include <stdexcept>

namespace sgdm {

void refuse(const Place& place, const std::string& fault) {
    std::string where = "image " + std::to_string(place.image);
    if (place.object >= 0) {
        where += ", object " + std::to_string(place.object);
    }
    throw std::invalid_argument(where + ": " + fault);
}

std::string number(double value) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.9g", value);
    return text.data();
}

}  // namespace sgdm
