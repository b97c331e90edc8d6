// Even-odd polygons, bit for bit as COCO's mask API fills them.
//
// COCO snaps vertices to a grid of fifths of a pixel, walks the boundary on that grid in whole steps along its
// longer axis, and flips the rest of a pixel column wherever the walk crosses that column's centre line: between
// the fifths 5 k + 2 and 5 k + 3. Only these crossings are computed here, not the walk: an edge costs as much as
// the pixel columns that it spans.
#include <cmath>

#include "grid.hpp"
#include "objects.hpp"

namespace sgdm {

namespace {

struct Point {
    std::int64_t x, y;  // in fifths of a pixel
};

// An edge at least as wide as high, from left to right: one step a fifth in x.
void cross_along_x(Point start, Point end, std::int64_t begin, std::int64_t stop, BitMask& mask) {
    const double slope = static_cast<double>(end.y - start.y) / static_cast<double>(end.x - start.x);
    // Of the two steps beside the centre line the upper one counts.
    const std::int64_t upper = kFifths / 2 + (slope < 0 ? 1 : 0) - start.x;
    for (std::int64_t column = begin; column < stop; ++column) {
        const auto step = static_cast<double>(kFifths * column + upper);
        const double y = static_cast<double>(start.y) + slope * step + 0.5;
        mask.toggle(first_pixel(static_cast<std::int64_t>(y), mask.height()), column);
    }
}

// An edge higher than wide, from top to bottom: one step a fifth in y.
void cross_along_y(Point start, Point end, std::int64_t begin, std::int64_t stop, BitMask& mask) {
    const double slope = static_cast<double>(end.x - start.x) / static_cast<double>(end.y - start.y);
    const auto left = static_cast<double>(start.x);
    for (std::int64_t column = begin; column < stop; ++column) {
        const auto right_of_centre = static_cast<double>(kFifths * column + 3);
        const auto crossed = [&](std::int64_t step) {
            return (left + slope * static_cast<double>(step) + 0.5 >= right_of_centre) == (slope > 0);
        };
        // The division is close; the walk's own arithmetic has the last word.
        auto step = static_cast<std::int64_t>((right_of_centre - 0.5 - left) / slope);
        while (crossed(step)) {
            --step;
        }
        while (!crossed(step + 1)) {
            ++step;
        }
        mask.toggle(first_pixel(start.y + step, mask.height()), column);
    }
}

void draw_edge(Point start, Point end, std::int64_t width, BitMask& mask) {
    // The columns whose centre line lies between the two ends.
    const std::int64_t begin = first_pixel(std::min(start.x, end.x), width);
    const std::int64_t stop = first_pixel(std::max(start.x, end.x), width);
    if (begin == stop) {
        return;
    }
    if (std::abs(end.x - start.x) >= std::abs(end.y - start.y)) {
        start.x < end.x ? cross_along_x(start, end, begin, stop, mask) : cross_along_x(end, start, begin, stop, mask);
    } else {
        start.y < end.y ? cross_along_y(start, end, begin, stop, mask) : cross_along_y(end, start, begin, stop, mask);
    }
}

void draw_part(std::span<const double> coordinates, const Affine& to_column, const Affine& to_row, const Target& target,
               BitMask& mask) {
    if (coordinates.size() % 2 != 0) {
        refuse(target.place, "a polygon of " + std::to_string(coordinates.size()) +
                                 " coordinates, an odd number; they must be x y x y ...");
    }
    if (coordinates.size() < 6) {
        refuse(target.place, "a polygon of " + std::to_string(coordinates.size() / 2) + " points; it needs 3 or more");
    }
    const auto point = [&](std::size_t at) {
        const double x = to_column(coordinates[at]);
        const double y = to_row(coordinates[at + 1]);
        check_coordinate(x, target.place);
        check_coordinate(y, target.place);
        return Point{snap(x), snap(y)};
    };
    Point previous = point(coordinates.size() - 2);
    for (std::size_t at = 0; at < coordinates.size(); at += 2) {
        const Point next = point(at);
        draw_edge(previous, next, target.width, mask);
        previous = next;
    }
    mask.fill_down();
}

}  // namespace

void draw(const Polygons& polygons, std::size_t object, const Target& target, Scratch& scratch) {
    if (target.sampling != Sampling::centre) {
        refuse(target.place, "polygons are scaled, not sampled: pil_nearest is not for them. Encode them at the "
                             "source's size first and sample the run lengths");
    }
    const std::size_t parts = polygons.part_offsets.size() - 1;
    const Range range = range_of(polygons.object_offsets, object, parts, "parts", target.place);
    if (range.size() == 0) {
        refuse(target.place, "a polygon without parts");
    }
    const Affine to_column = column_affine(target.view, target.width);
    const Affine to_row = row_affine(target.view, target.height);
    for (std::size_t part = range.begin; part < range.end; ++part) {
        const Range values =
            range_of(polygons.part_offsets, part, polygons.coordinates.size(), "coordinates", target.place);
        const auto coordinates = polygons.coordinates.subspan(values.begin, values.size());
        if (part == range.begin) {
            draw_part(coordinates, to_column, to_row, target, scratch.object);
        } else {
            scratch.part.reset(target.height, target.width);
            draw_part(coordinates, to_column, to_row, target, scratch.part);
            scratch.object.add(scratch.part);
        }
    }
}

}  // namespace sgdm
