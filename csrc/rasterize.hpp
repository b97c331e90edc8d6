// Batches of annotations to condition tensors. Plain C++: no Python, no libtorch, no allocation an image.
//
// All of these throw std::invalid_argument naming image, object and value; of several faults always the same one.
// What the output holds then is not defined.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "batch.hpp"
#include "objects.hpp"
#include "output.hpp"

namespace sgdm {

// Who is seen where objects overlap.
enum class Overlap {
    last,          // the later object
    first,         // the earlier one
    largest_last,  // the one with more pixels in the target grid; of equals the later one
    multi_hot      // all of them
};

struct Annotations {
    Objects objects;
    std::span<const std::int64_t> image_offsets;  // [images + 1], into objects
    std::span<const std::int32_t> class_ids;      // [N]
};

void rasterize(const Annotations& annotations, const Batch& batch, const Output& output, Overlap overlap,
               std::int64_t threads);

void rasterize(const LabelMaps& label_maps, const Batch& batch, const Output& output, std::int64_t threads);

// COCO's compressed run lengths of every object, at a size of the target.
struct Encoded {
    std::string text;
    std::vector<std::int64_t> offsets;
};
Encoded encode(const Annotations& annotations, const Batch& batch, Size size);

}  // namespace sgdm
