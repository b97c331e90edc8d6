// The Python face of the rasterizer. Shapes and types are checked here, values in raster.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "raster.hpp"

namespace py = pybind11;

namespace {

using Boxes = py::array_t<std::int32_t, py::array::c_style>;
using Masks = py::array_t<std::uint8_t, py::array::c_style>;

std::string shape_of(const py::array& array) {
    return py::str(array.attr("shape")).cast<std::string>();
}

void rasterize_boxes(const Boxes& boxes, Masks& masks) {
    if (boxes.ndim() != 2 || boxes.shape(1) != 4) {
        throw py::value_error("boxes must be int32 [N, 4], got shape " + shape_of(boxes));
    }
    if (masks.ndim() != 3 || masks.shape(0) != boxes.shape(0)) {
        throw py::value_error("masks must be uint8 [N, H, W] with N = " + std::to_string(boxes.shape(0)) +
                              ", got shape " + shape_of(masks));
    }
    const auto images = static_cast<std::size_t>(boxes.shape(0));
    const auto height = static_cast<std::size_t>(masks.shape(1));
    const auto width = static_cast<std::size_t>(masks.shape(2));
    const std::span<const sgdm::Box> box_span(reinterpret_cast<const sgdm::Box*>(boxes.data()), images);
    const std::span<std::uint8_t> mask_span(masks.mutable_data(), images * height * width);
    const py::gil_scoped_release release;
    sgdm::rasterize_boxes(box_span, height, width, mask_span);
}

}  // namespace

PYBIND11_MODULE(_raster, module) {
    module.doc() = "Rasterizer of the self-annotations (csrc/raster.hpp)";
    // noconvert: a silent copy of `masks` would be written and thrown away.
    module.def("rasterize_boxes", &rasterize_boxes, py::arg("boxes").noconvert(), py::arg("masks").noconvert());
}
