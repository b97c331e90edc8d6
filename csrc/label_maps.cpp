#include <stdexcept>

#include "rasterize.hpp"
#include "thread_pool.hpp"

namespace sgdm {

namespace {

template <typename Label>
void write_labels(std::span<const Label> labels, const LabelMaps& maps, const Target& target,
                  const auto& canvas, Scratch& scratch) {
    const auto width = static_cast<std::size_t>(target.view.width);
    std::vector<std::int32_t>& classes = scratch.classes;
    classes.resize(static_cast<std::size_t>(target.width));
    for (std::int64_t row = 0; row < target.height; ++row) {
        const auto source_row = static_cast<std::size_t>(scratch.rows.source[static_cast<std::size_t>(row)]);
        const std::span<const Label> source = labels.subspan(source_row * width, width);
        for (std::size_t column = 0; column < classes.size(); ++column) {
            const auto source_column = static_cast<std::size_t>(scratch.columns.source[column]);
            const std::int64_t label = source[source_column];
            std::int32_t& shown = classes[target.view.flip ? classes.size() - 1 - column : column];
            if (label == maps.ignore) {
                shown = -1;
            } else if (label >= 0 && static_cast<std::size_t>(label) < maps.classes.size()) {
                shown = maps.classes[static_cast<std::size_t>(label)];
            } else {
                refuse(target.place, "label " + std::to_string(label) + " at row " + std::to_string(source_row) +
                                         ", column " + std::to_string(source_column) + " is not one of 0 to " +
                                         std::to_string(static_cast<std::int64_t>(maps.classes.size()) - 1) +
                                         " and not the ignored one");
            }
        }
        canvas.write(row, classes);
    }
}

template <typename T>
void rasterize_label_map(const LabelMaps& maps, const Batch& batch, const Output& output, std::size_t row) {
    const Place place{batch.images[row]};
    const std::size_t image = image_of(batch, row, maps.count());
    const View view = view_of(batch, row, place);
    const Target target{view, output.height, output.width, batch.sampling, place};
    check_size(maps.sizes, image, target);
    Scratch& scratch = scratch_of_thread();
    sample_axes(target, scratch);
    const Canvas<T> canvas(output, static_cast<std::int64_t>(row));
    canvas.clear();
    std::visit(
        [&](const auto& labels) {
            const Range range = range_of(maps.offsets, image, labels.size(), "pixels", place);
            if (range.size() != static_cast<std::size_t>(view.height) * static_cast<std::size_t>(view.width)) {
                refuse(place, "its offsets hold " + std::to_string(range.size()) + " pixels, its size is " +
                                  std::to_string(view.height) + " x " + std::to_string(view.width));
            }
            write_labels(labels.subspan(range.begin, range.size()), maps, target, canvas, scratch);
        },
        maps.labels);
}

void check_table(const LabelMaps& maps, std::int64_t classes) {
    for (std::size_t label = 0; label < maps.classes.size(); ++label) {
        if (maps.classes[label] < -1 || maps.classes[label] >= classes) {
            throw std::invalid_argument("the look-up table maps label " + std::to_string(label) + " to class " +
                                        std::to_string(maps.classes[label]) + ", which is not one of 0 to " +
                                        std::to_string(classes - 1) + " and not -1 for none");
        }
    }
}

}  // namespace

void rasterize(const LabelMaps& label_maps, const Batch& batch, const Output& output, std::int64_t threads) {
    check_output(output, batch);
    if (output.form != Form::mask) {
        check_table(label_maps, output.classes);
    }
    parallel_for(output.images, threads, [&](std::size_t row) {
        output.bfloat16 ? rasterize_label_map<std::uint16_t>(label_maps, batch, output, row)
                        : rasterize_label_map<std::uint8_t>(label_maps, batch, output, row);
    });
}

}  // namespace sgdm
