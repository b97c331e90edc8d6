#include <utility>

#include "grid.hpp"
#include "objects.hpp"

namespace sgdm {

namespace {

struct Interval {
    std::int64_t begin, end;
};

Interval snapped(double begin, double end, std::int64_t size, const Place& place) {
    check_coordinate(begin, place);
    check_coordinate(end, place);
    return {first_pixel(snap(begin), size), first_pixel(snap(end), size)};
}

// Scale, then rasterise: as COCO does with the four corners.
Interval scaled(double begin, double end, const Affine& affine, std::int64_t size, const Place& place) {
    begin = affine(begin);
    end = affine(end);
    if (affine.scale < 0) {
        std::swap(begin, end);
    }
    return snapped(begin, end, size, place);
}

// Rasterise, then sample: as a mask of the size of the source would be resized.
Interval sampled(double begin, double end, std::int64_t source_size, const SampledAxis& axis, const Place& place) {
    const Interval source = snapped(begin, end, source_size, place);
    return {axis.first[static_cast<std::size_t>(source.begin)], axis.first[static_cast<std::size_t>(source.end)]};
}

void check_order(std::span<const double> box, const Place& place) {
    for (const double value : box) {
        check_coordinate(value, place);
    }
    if (box[2] < box[0] || box[3] < box[1]) {
        refuse(place, "the box x0=" + number(box[0]) + " y0=" + number(box[1]) + " x1=" + number(box[2]) +
                          " y1=" + number(box[3]) + " ends before it starts: its size is negative");
    }
}

}  // namespace

void draw(const Boxes& boxes, std::size_t object, const Target& target, Scratch& scratch) {
    const std::span<const double> box = boxes.corners.subspan(4 * object, 4);
    check_order(box, target.place);
    Interval columns, rows;
    if (target.sampling == Sampling::centre) {
        columns = scaled(box[0], box[2], column_affine(target.view, target.width), target.width, target.place);
        rows = scaled(box[1], box[3], row_affine(target.view, target.height), target.height, target.place);
    } else {
        columns = sampled(box[0], box[2], target.view.width, scratch.columns, target.place);
        rows = sampled(box[1], box[3], target.view.height, scratch.rows, target.place);
        if (target.view.flip) {
            columns = {target.width - columns.end, target.width - columns.begin};
        }
    }
    if (rows.begin < rows.end) {
        scratch.object.toggle_columns(rows.begin, columns.begin, columns.end);
        scratch.object.toggle_columns(rows.end, columns.begin, columns.end);
        scratch.object.fill_down();
    }
}

}  // namespace sgdm
