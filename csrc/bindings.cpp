// The Python face of the rasterizer, used by sgdm/raster.py alone. Shapes, types and the caller's buffer are checked
// here, values in the files that read them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "rasterize.hpp"
#include "run_length_codec.hpp"
#include "tensor.hpp"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Spans into arrays that Python owns, and a hold on these.
template <typename T>
struct Held {
    T value;
    std::vector<py::array> arrays;
};

using HeldAnnotations = Held<sgdm::Annotations>;
using HeldLabelMaps = Held<sgdm::LabelMaps>;
using HeldBatch = Held<sgdm::Batch>;

template <typename T>
std::span<const T> span_of(const Array<T>& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")).cast<std::string>(); }

void require(bool condition, const std::string& fault) {
    if (!condition) {
        throw py::value_error(fault);
    }
}

void require_rows(const py::array& array, std::size_t rows, py::ssize_t columns, const char* name) {
    require(array.ndim() == 2 && array.shape(0) == static_cast<py::ssize_t>(rows) && array.shape(1) == columns,
            std::string(name) + " must be [" + std::to_string(rows) + ", " + std::to_string(columns) +
                "], got shape " + shape_of(array));
}

void require_offsets(const py::array& array, const char* name) {
    require(array.ndim() == 1 && array.shape(0) >= 1,
            std::string(name) + " must be one more than there are items, got shape " + shape_of(array));
}

HeldAnnotations annotations(sgdm::Objects objects, const Array<std::int64_t>& image_offsets,
                            const Array<std::int32_t>& class_ids, std::vector<py::array> arrays) {
    require_offsets(image_offsets, "image_offsets");
    const std::size_t count = std::visit([](const auto& all) { return all.count(); }, objects);
    require(class_ids.ndim() == 1 && static_cast<std::size_t>(class_ids.size()) == count,
            "class_ids must be [" + std::to_string(count) + "], one for each object, got shape " +
                shape_of(class_ids));
    arrays.insert(arrays.end(), {image_offsets, class_ids});
    return {{objects, span_of(image_offsets), span_of(class_ids)}, std::move(arrays)};
}

HeldAnnotations boxes(const Array<double>& corners, const Array<std::int64_t>& image_offsets,
                      const Array<std::int32_t>& class_ids) {
    require(corners.ndim() == 2 && corners.shape(1) == 4, "corners must be [N, 4], got shape " + shape_of(corners));
    return annotations(sgdm::Boxes{span_of(corners)}, image_offsets, class_ids, {corners});
}

HeldAnnotations polygons(const Array<double>& coordinates, const Array<std::int64_t>& part_offsets,
                         const Array<std::int64_t>& object_offsets, const Array<std::int64_t>& image_offsets,
                         const Array<std::int32_t>& class_ids) {
    require_offsets(part_offsets, "part_offsets");
    require_offsets(object_offsets, "object_offsets");
    const sgdm::Polygons objects{span_of(coordinates), span_of(part_offsets), span_of(object_offsets)};
    return annotations(objects, image_offsets, class_ids, {coordinates, part_offsets, object_offsets});
}

// Objects made of pixels: values, offsets and sizes.
template <typename Kind, typename T>
HeldAnnotations sized_objects(const Array<T>& values, const Array<std::int64_t>& offsets,
                              const Array<std::int64_t>& sizes, const Array<std::int64_t>& image_offsets,
                              const Array<std::int32_t>& class_ids) {
    require_offsets(offsets, "offsets");
    const Kind objects{span_of(values), span_of(offsets), span_of(sizes)};
    require_rows(sizes, objects.count(), 2, "sizes");
    return annotations(objects, image_offsets, class_ids, {values, offsets, sizes});
}

template <typename T>
HeldLabelMaps label_maps(const Array<T>& labels, const Array<std::int64_t>& offsets,
                         const Array<std::int64_t>& sizes, const Array<std::int32_t>& classes,
                         std::optional<std::int64_t> ignore) {
    require_offsets(offsets, "offsets");
    const sgdm::LabelMaps maps{span_of(labels), span_of(offsets), span_of(sizes), span_of(classes), ignore};
    require_rows(sizes, maps.count(), 2, "sizes");
    return {maps, {labels, offsets, sizes, classes}};
}

HeldBatch batch(const Array<std::int64_t>& images, const Array<std::int64_t>& sizes, const Array<double>& crops,
                const Array<std::uint8_t>& flips, bool pil_nearest) {
    const auto count = static_cast<std::size_t>(images.size());
    require(images.ndim() == 1, "images must be [B], got shape " + shape_of(images));
    require_rows(sizes, count, 2, "sizes of views");
    require_rows(crops, count, 4, "crops of views");
    require(flips.ndim() == 1 && static_cast<std::size_t>(flips.size()) == count,
            "flips of views must be [" + std::to_string(count) + "], got shape " + shape_of(flips));
    const auto sampling = pil_nearest ? sgdm::Sampling::pil_nearest : sgdm::Sampling::centre;
    return {{span_of(images), span_of(sizes), span_of(crops), span_of(flips), sampling}, {images, sizes, crops, flips}};
}

sgdm::Overlap overlap_of(const std::string& name) {
    if (name == "last") return sgdm::Overlap::last;
    if (name == "first") return sgdm::Overlap::first;
    if (name == "largest-last") return sgdm::Overlap::largest_last;
    if (name == "multi-hot") return sgdm::Overlap::multi_hot;
    throw py::value_error("overlap '" + name + "' is not one of last, first, largest-last, multi-hot");
}

void rasterize_annotations(const HeldAnnotations& annotations, const HeldBatch& batch, const sgdm::Output& output,
                           const std::string& overlap, std::int64_t threads) {
    const sgdm::Overlap policy = overlap_of(overlap);
    const py::gil_scoped_release release;
    sgdm::rasterize(annotations.value, batch.value, output, policy, threads);
}

// Label maps do not overlap; the policy's name is checked all the same.
void rasterize_label_maps(const HeldLabelMaps& maps, const HeldBatch& batch, const sgdm::Output& output,
                          const std::string& overlap, std::int64_t threads) {
    overlap_of(overlap);
    const py::gil_scoped_release release;
    sgdm::rasterize(maps.value, batch.value, output, threads);
}

template <typename T>
Array<T> array_of(const T* values, std::size_t count) {
    return Array<T>(static_cast<py::ssize_t>(count), values);
}

py::tuple encode(const HeldAnnotations& annotations, const HeldBatch& batch, std::int64_t height, std::int64_t width) {
    const sgdm::Encoded encoded = [&] {
        const py::gil_scoped_release release;
        return sgdm::encode(annotations.value, batch.value, {height, width});
    }();
    return py::make_tuple(array_of(reinterpret_cast<const std::uint8_t*>(encoded.text.data()), encoded.text.size()),
                          array_of(encoded.offsets.data(), encoded.offsets.size()));
}

py::tuple compress(const Array<std::uint32_t>& counts, const Array<std::int64_t>& offsets) {
    require_offsets(offsets, "offsets");
    std::string text;
    std::vector<std::int64_t> text_offsets{0};
    const auto all = span_of(counts);
    for (py::ssize_t object = 0; object + 1 < offsets.size(); ++object) {
        const auto number = static_cast<std::size_t>(object);
        const auto range = sgdm::range_of(span_of(offsets), number, all.size(), "counts", {-1, object});
        sgdm::write_counts(all.subspan(range.begin, range.size()), text);
        text_offsets.push_back(static_cast<std::int64_t>(text.size()));
    }
    return py::make_tuple(array_of(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()),
                          array_of(text_offsets.data(), text_offsets.size()));
}

py::tuple uncompress(const Array<std::uint8_t>& text, const Array<std::int64_t>& offsets) {
    require_offsets(offsets, "offsets");
    std::vector<std::uint32_t> counts, scratch;
    std::vector<std::int64_t> count_offsets{0};
    const auto all = span_of(text);
    for (py::ssize_t object = 0; object + 1 < offsets.size(); ++object) {
        const auto number = static_cast<std::size_t>(object);
        const auto range = sgdm::range_of(span_of(offsets), number, all.size(), "characters", {-1, object});
        const auto read = sgdm::read_counts(all.subspan(range.begin, range.size()), {-1, object}, scratch);
        counts.insert(counts.end(), read.begin(), read.end());
        count_offsets.push_back(static_cast<std::int64_t>(counts.size()));
    }
    return py::make_tuple(array_of(counts.data(), counts.size()), array_of(count_offsets.data(), count_offsets.size()));
}

}  // namespace

// An array of another type must not become a silent copy, made anew for each call.
#define NO_COPY(name) py::arg(name).noconvert()

PYBIND11_MODULE(_raster, module) {
    module.doc() = "Rasterizer of annotations (csrc/rasterize.hpp); sgdm.raster is its face";

    py::class_<HeldAnnotations>(module, "Annotations");
    py::class_<HeldLabelMaps>(module, "LabelMaps");
    py::class_<HeldBatch>(module, "Batch")
        .def(py::init(&batch), NO_COPY("images"), NO_COPY("sizes"), NO_COPY("crops"), NO_COPY("flips"),
             py::arg("pil_nearest"));

    module.def("boxes", &boxes, NO_COPY("corners"), NO_COPY("image_offsets"), NO_COPY("class_ids"));
    module.def("polygons", &polygons, NO_COPY("coordinates"), NO_COPY("part_offsets"), NO_COPY("object_offsets"),
               NO_COPY("image_offsets"), NO_COPY("class_ids"));
    module.def("run_lengths", &sized_objects<sgdm::RunLengths, std::uint32_t>, NO_COPY("values"), NO_COPY("offsets"),
               NO_COPY("sizes"), NO_COPY("image_offsets"), NO_COPY("class_ids"));
    module.def("run_lengths", &sized_objects<sgdm::CompressedRunLengths, std::uint8_t>, NO_COPY("values"),
               NO_COPY("offsets"), NO_COPY("sizes"), NO_COPY("image_offsets"), NO_COPY("class_ids"));
    module.def("masks", &sized_objects<sgdm::Masks, std::uint8_t>, NO_COPY("values"), NO_COPY("offsets"),
               NO_COPY("sizes"), NO_COPY("image_offsets"), NO_COPY("class_ids"));
    module.def("label_maps", &label_maps<std::uint8_t>, NO_COPY("values"), NO_COPY("offsets"), NO_COPY("sizes"),
               NO_COPY("classes"), py::arg("ignore"));
    module.def("label_maps", &label_maps<std::int32_t>, NO_COPY("values"), NO_COPY("offsets"), NO_COPY("sizes"),
               NO_COPY("classes"), py::arg("ignore"));

    py::class_<sgdm::Tensor>(module, "Tensor")
        .def(py::init<std::uintptr_t, std::int64_t, std::int64_t, std::vector<std::int64_t>, std::vector<std::int64_t>>(),
             py::arg("address"), py::arg("item_size"), py::arg("bytes"), py::arg("shape"), py::arg("strides"));
    py::class_<sgdm::Output>(module, "Output");
    module.def("labels_output", &sgdm::labels_output, py::arg("tensor"), py::arg("classes"), py::arg("background"));
    module.def("channels_output", &sgdm::channels_output, py::arg("tensor"));
    module.def("mask_output", &sgdm::mask_output, py::arg("tensor"));
    module.def("presence_output", &sgdm::presence_output, py::arg("tensor"), py::arg("height"), py::arg("width"));

    module.def("rasterize", &rasterize_annotations, py::arg("annotations"), py::arg("batch"), py::arg("output"),
               py::arg("overlap"), py::arg("threads"));
    module.def("rasterize", &rasterize_label_maps, py::arg("annotations"), py::arg("batch"), py::arg("output"),
               py::arg("overlap"), py::arg("threads"));
    module.def("encode", &encode, py::arg("annotations"), py::arg("batch"), py::arg("height"), py::arg("width"));
    module.def("compress", &compress, NO_COPY("counts"), NO_COPY("offsets"));
    module.def("uncompress", &uncompress, NO_COPY("text"), NO_COPY("offsets"));
}
