// Annotations as ragged arrays, and how one object of each kind becomes a mask. Nothing here owns memory.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "bit_mask.hpp"
#include "place.hpp"
#include "view.hpp"

namespace sgdm {

// Memory that a thread keeps from object to object, image to image and batch to batch.
struct Scratch {
    SampledAxis columns, rows;
    BitMask object, part;
    std::vector<std::uint32_t> counts;
    std::vector<std::uint64_t> occupied;
    std::vector<std::int64_t> order, areas;
    std::vector<std::int32_t> classes;
};

// What a drawing function is told beside its object.
struct Target {
    const View& view;
    std::int64_t height, width;
    Sampling sampling;
    Place place;
};

// The items of number i of a ragged array are offsets[i] <= item < offsets[i + 1].
struct Range {
    std::size_t begin, end;
    std::size_t size() const { return end - begin; }
};
// Throws where the offsets fall, or lead out of `count` items.
Range range_of(std::span<const std::int64_t> offsets, std::size_t number, std::size_t count, const char* items,
               const Place& place);

// Throws where an object made of pixels has not the size of the source.
void check_size(std::span<const std::int64_t> sizes, std::size_t object, const Target& target);

// Half-open boxes, x0 y0 x1 y1.
struct Boxes {
    std::span<const double> corners;  // [N, 4]
    std::size_t count() const { return corners.size() / 4; }
};

// An object is the union of its parts, each filled by the even-odd rule.
struct Polygons {
    std::span<const double> coordinates;            // x y x y ... of one part after another
    std::span<const std::int64_t> part_offsets;    // [parts + 1], into coordinates
    std::span<const std::int64_t> object_offsets;  // [N + 1], into parts
    std::size_t count() const { return object_offsets.size() - 1; }
};

// Uncompressed COCO run lengths: down the columns, zeros first.
struct RunLengths {
    std::span<const std::uint32_t> counts;
    std::span<const std::int64_t> offsets;  // [N + 1]
    std::span<const std::int64_t> sizes;    // [N, 2], height and width
    std::size_t count() const { return offsets.size() - 1; }
};

// The same, compressed (run_length_codec.hpp).
struct CompressedRunLengths {
    std::span<const std::uint8_t> text;
    std::span<const std::int64_t> offsets;  // [N + 1]
    std::span<const std::int64_t> sizes;    // [N, 2]
    std::size_t count() const { return offsets.size() - 1; }
};

// Row-major binary masks; what is not zero is inside.
struct Masks {
    std::span<const std::uint8_t> pixels;
    std::span<const std::int64_t> offsets;  // [N + 1]
    std::span<const std::int64_t> sizes;    // [N, 2]
    std::size_t count() const { return offsets.size() - 1; }
};

using Objects = std::variant<Boxes, Polygons, RunLengths, CompressedRunLengths, Masks>;

// Each draws one object into scratch.object, which has been reset to the size of the target.
void draw(const Boxes& boxes, std::size_t object, const Target& target, Scratch& scratch);
void draw(const Polygons& polygons, std::size_t object, const Target& target, Scratch& scratch);
void draw(const RunLengths& run_lengths, std::size_t object, const Target& target, Scratch& scratch);
void draw(const CompressedRunLengths& run_lengths, std::size_t object, const Target& target, Scratch& scratch);
void draw(const Masks& masks, std::size_t object, const Target& target, Scratch& scratch);

// Sampled label maps, one an image.
struct LabelMaps {
    std::variant<std::span<const std::uint8_t>, std::span<const std::int32_t>> labels;  // row-major
    std::span<const std::int64_t> offsets;   // [images + 1]
    std::span<const std::int64_t> sizes;     // [images, 2]
    std::span<const std::int32_t> classes;  // look-up table: label to class, -1 for none
    std::optional<std::int64_t> ignore;     // a label that is of no class, whatever the table says
    std::size_t count() const { return offsets.size() - 1; }
};

}  // namespace sgdm
