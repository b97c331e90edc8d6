#include "tensor.hpp"

#include <stdexcept>
#include <string>

namespace sgdm {

namespace {

using Sizes = std::vector<std::int64_t>;

std::string text(const Sizes& sizes) {
    std::string joined = "(";
    for (const std::int64_t size : sizes) {
        joined += std::to_string(size) + ", ";
    }
    return joined.substr(0, joined.size() - 2) + ")";
}

void require(bool condition, const std::string& fault) {
    if (!condition) {
        throw std::invalid_argument(fault);
    }
}

void require_dimensions(const Tensor& tensor, std::size_t count, const char* names) {
    require(tensor.shape.size() == count && tensor.strides.size() == count,
            std::string("out must be ") + names + ", got shape " + text(tensor.shape));
}

// Whether the dimensions after the first have these strides; where there is one item the stride says nothing.
bool has_strides(const Tensor& tensor, const Sizes& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
        if (tensor.shape[i + 1] != 1 && tensor.strides[i + 1] != expected[i]) {
            return false;
        }
    }
    return true;
}

void require_dense(bool dense, const Tensor& tensor, const char* layouts) {
    require(dense, std::string("out's images must be ") + layouts + ", got strides " + text(tensor.strides) +
                       " of shape " + text(tensor.shape));
}

// Checks the memory and fills in what all forms share.
Output output_of(const Tensor& tensor, Form form, Size size, std::int64_t image_size) {
    const std::int64_t images = tensor.shape[0];
    const std::int64_t stride = tensor.strides[0];
    require(tensor.item_size == 1 || (tensor.item_size == 2 && form != Form::labels),
            "out has elements of " + std::to_string(tensor.item_size) + " bytes; it must be uint8" +
                (form == Form::labels ? "" : " or bfloat16"));
    require(images <= 1 || stride >= image_size,
            "out has images that overlap: strides " + text(tensor.strides) + " of shape " + text(tensor.shape));
    require(tensor.address % static_cast<std::uintptr_t>(tensor.item_size) == 0,
            "out lies at address " + std::to_string(tensor.address) + ", not aligned to its elements of " +
                std::to_string(tensor.item_size) + " bytes");
    const std::int64_t needed = images * image_size == 0 ? 0 : ((images - 1) * stride + image_size) * tensor.item_size;
    require(tensor.bytes >= needed, "out is too small: its memory has " + std::to_string(tensor.bytes) + " bytes, " +
                                        std::to_string(needed) + " are needed");
    Output output{};
    output.form = form;
    output.data = reinterpret_cast<void*>(tensor.address);
    output.bfloat16 = tensor.item_size == 2;
    output.images = images;
    output.height = size.height;
    output.width = size.width;
    output.image_stride = stride;
    output.image_size = image_size;
    output.row_stride = size.width;
    output.column_stride = 1;
    return output;
}

Output planes_output(const Tensor& tensor, Form form) {
    const std::int64_t channels = tensor.shape[1];
    const Size size{tensor.shape[2], tensor.shape[3]};
    const std::int64_t pixels = size.height * size.width;
    const bool contiguous = has_strides(tensor, {pixels, size.width, 1});
    const bool channels_last = has_strides(tensor, {1, size.width * channels, channels});
    require_dense(contiguous || channels_last, tensor, "contiguous or channels_last");
    Output output = output_of(tensor, form, size, channels * pixels);
    output.classes = channels;
    output.channel_stride = pixels;
    if (!contiguous) {
        output.channel_stride = 1;
        output.row_stride = size.width * channels;
        output.column_stride = channels;
    }
    return output;
}

}  // namespace

Output labels_output(const Tensor& tensor, std::int64_t classes, std::int64_t background) {
    require_dimensions(tensor, 3, "[B, H, W]");
    require(classes >= 1 && classes <= 256,
            "num_classes " + std::to_string(classes) + " does not fit uint8: choose 1 to 256");
    require(background >= 0 && background <= 255,
            "background " + std::to_string(background) + " does not fit uint8: choose 0 to 255");
    const Size size{tensor.shape[1], tensor.shape[2]};
    require_dense(has_strides(tensor, {size.width, 1}), tensor, "contiguous");
    Output output = output_of(tensor, Form::labels, size, size.height * size.width);
    output.classes = classes;
    output.background = static_cast<std::uint8_t>(background);
    return output;
}

Output channels_output(const Tensor& tensor) {
    require_dimensions(tensor, 4, "[B, K, H, W]");
    return planes_output(tensor, Form::channels);
}

Output mask_output(const Tensor& tensor) {
    require_dimensions(tensor, 4, "[B, 1, H, W]");
    require(tensor.shape[1] == 1, "out must be [B, 1, H, W], got shape " + text(tensor.shape));
    return planes_output(tensor, Form::mask);
}

Output presence_output(const Tensor& tensor, std::int64_t height, std::int64_t width) {
    require_dimensions(tensor, 2, "[B, K]");
    require_dense(has_strides(tensor, {1}), tensor, "contiguous");
    Output output = output_of(tensor, Form::presence, {height, width}, tensor.shape[1]);
    output.classes = tensor.shape[1];
    output.channel_stride = 1;
    return output;
}

}  // namespace sgdm
