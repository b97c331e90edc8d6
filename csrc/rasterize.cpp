#include "rasterize.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>

#include "run_length_codec.hpp"
#include "run_lengths.hpp"
#include "thread_pool.hpp"

namespace sgdm {

namespace {

bool is_sampled(const Objects& objects, Sampling sampling) {
    if (std::holds_alternative<Polygons>(objects)) {
        return false;
    }
    return sampling == Sampling::pil_nearest || !std::holds_alternative<Boxes>(objects);
}

void draw_object(const Annotations& annotations, std::size_t object, const Target& target, Scratch& scratch) {
    scratch.object.reset(target.height, target.width);
    std::visit([&](const auto& objects) { draw(objects, object, target, scratch); }, annotations.objects);
}

std::int64_t area_of(const BitMask& mask) {
    std::int64_t area = 0;
    for (std::int64_t row = mask.begin_row(); row < mask.end_row(); ++row) {
        for (const std::uint64_t word : mask.row(row)) {
            area += std::popcount(word);
        }
    }
    return area;
}

// The objects of one image: the range of their numbers, and what drawing needs.
struct Image {
    const Annotations& annotations;
    Range range;
    View view;
    Target target;
    Scratch& scratch;

    Image(const Annotations& all, const Batch& batch, std::size_t row, Size size)
        : annotations(all),
          range(find(all, batch, row)),
          view(view_of(batch, row, {batch.images[row]})),
          target{view, size.height, size.width, batch.sampling, {batch.images[row]}},
          scratch(scratch_of_thread()) {
        if (is_sampled(all.objects, batch.sampling)) {
            sample_axes(target, scratch);
        }
    }
    Image(const Image&) = delete;  // target refers to view

    // `number` counts from 0 in each image.
    const BitMask& draw(std::size_t number) {
        target.place.object = static_cast<std::int64_t>(number);
        draw_object(annotations, range.begin + number, target, scratch);
        return scratch.object;
    }

   private:
    static Range find(const Annotations& all, const Batch& batch, std::size_t row) {
        const std::size_t image = image_of(batch, row, all.image_offsets.size() - 1);
        return range_of(all.image_offsets, image, all.class_ids.size(), "objects", {batch.images[row]});
    }
};

// The order in which objects take the pixels that are still free.
std::span<const std::int64_t> order_of(Image& image, Overlap overlap) {
    std::vector<std::int64_t>& order = image.scratch.order;
    order.resize(image.range.size());
    std::iota(order.begin(), order.end(), 0);
    if (overlap == Overlap::last || overlap == Overlap::largest_last) {
        std::reverse(order.begin(), order.end());
    }
    if (overlap == Overlap::largest_last) {
        std::vector<std::int64_t>& areas = image.scratch.areas;
        areas.resize(order.size());
        for (std::size_t number = 0; number < areas.size(); ++number) {
            areas[number] = area_of(image.draw(number));
        }
        // std::stable_sort would allocate.
        std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
            const std::int64_t area_a = areas[static_cast<std::size_t>(a)];
            const std::int64_t area_b = areas[static_cast<std::size_t>(b)];
            return area_a != area_b ? area_a > area_b : a > b;
        });
    }
    return order;
}

template <typename T>
void rasterize_image(const Annotations& annotations, const Batch& batch, const Output& output, Overlap overlap,
                     std::size_t row) {
    Image image(annotations, batch, row, {output.height, output.width});
    const Canvas<T> canvas(output, static_cast<std::int64_t>(row));
    canvas.clear();
    // The others show every object, whatever lies over it.
    const bool one_a_pixel =
        (output.form == Form::labels || output.form == Form::channels) && overlap != Overlap::multi_hot;
    std::vector<std::uint64_t>& occupied = image.scratch.occupied;
    occupied.assign(one_a_pixel ? static_cast<std::size_t>(output.height * ((output.width + 63) / 64)) : 0, 0);
    for (const std::int64_t number : order_of(image, one_a_pixel ? overlap : Overlap::first)) {
        const BitMask& mask = image.draw(static_cast<std::size_t>(number));
        const std::int32_t label = annotations.class_ids[image.range.begin + static_cast<std::size_t>(number)];
        if (output.form != Form::mask && (label < 0 || label >= output.classes)) {
            refuse(image.target.place,
                   "class " + std::to_string(label) + " is not one of 0 to " + std::to_string(output.classes - 1));
        }
        canvas.paint(mask, label, occupied);
    }
}

}  // namespace

void rasterize(const Annotations& annotations, const Batch& batch, const Output& output, Overlap overlap,
               std::int64_t threads) {
    check_output(output, batch);
    if (overlap == Overlap::multi_hot && output.form == Form::labels) {
        throw std::invalid_argument("a label map holds one class a pixel: overlap cannot be multi-hot");
    }
    parallel_for(output.images, threads, [&](std::size_t row) {
        output.bfloat16 ? rasterize_image<std::uint16_t>(annotations, batch, output, overlap, row)
                        : rasterize_image<std::uint8_t>(annotations, batch, output, overlap, row);
    });
}

Encoded encode(const Annotations& annotations, const Batch& batch, Size size) {
    check_target(size);
    Encoded encoded{{}, {0}};
    for (std::size_t row = 0; row < batch.images.size(); ++row) {
        Image image(annotations, batch, row, size);
        for (std::size_t number = 0; number < image.range.size(); ++number) {
            write_counts(counts_of(image.draw(number), size.width), encoded.text);
            encoded.offsets.push_back(static_cast<std::int64_t>(encoded.text.size()));
        }
    }
    return encoded;
}

}  // namespace sgdm
