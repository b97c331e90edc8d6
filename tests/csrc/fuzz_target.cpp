// Any bytes at all, as annotations, views and outputs: either bytes of the promised form come out, or
// std::invalid_argument; and whatever is drawn for the second time allocates nothing for its images. Sanitizers see to
// the rest. The entry is libFuzzer's; without clang, fuzz_driver.cpp calls it.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "rasterize.hpp"
#include "run_length_codec.hpp"
#include "tensor.hpp"

// Of the sanitizers' run time; GCC comes without its header.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t),
                                                         void (*)(const volatile void*));

namespace {

void expect(bool condition, const char* promise) {
    if (!condition) {
        std::fprintf(stderr, "broken promise: %s\n", promise);
        std::abort();
    }
}

std::atomic<std::int64_t> allocations;
[[maybe_unused]] const int hooks = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t) { ++allocations; }, [](const volatile void*) {});

// Reads values off the fuzzer's bytes; zeros when they are spent.
class Bytes {
   public:
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    template <typename T>
    T take() {
        T value{};
        const std::size_t size = std::min(sizeof(T), left_);
        if (size > 0) {
            std::memcpy(&value, data_, size);
            data_ += size;
            left_ -= size;
        }
        return value;
    }

    std::int64_t up_to(std::int64_t limit) { return take<std::uint8_t>() % (limit + 1); }

    // Mostly near the image, at times anything.
    double coordinate() {
        const auto kind = take<std::uint8_t>();
        return kind < 253 ? static_cast<double>(take<std::int16_t>() % 1024) / (kind < 128 ? 1 : 10) : take<double>();
    }

    // Rising from 0 to `end` in `count` steps, at times with a fault.
    std::vector<std::int64_t> offsets(std::int64_t count, std::int64_t end) {
        std::vector<std::int64_t> all(static_cast<std::size_t>(count) + 1);
        for (std::int64_t i = 0; i <= count; ++i) {
            all[static_cast<std::size_t>(i)] = count == 0 ? 0 : end * i / count;
        }
        if (take<std::uint8_t>() >= 240) {
            all[static_cast<std::size_t>(up_to(count))] = up_to(1) == 0 ? take<std::int64_t>() : take<std::int8_t>();
        }
        return all;
    }

    std::size_t left() const { return left_; }

   private:
    const std::uint8_t* data_;
    std::size_t left_;
};

constexpr std::int64_t kImages = 2;

struct Case {
    explicit Case(Bytes& bytes)
        : kind(bytes.up_to(5)),
          bfloat16(bytes.up_to(1) == 1),
          channels_last(bytes.up_to(1) == 1),
          classes(1 + bytes.up_to(3)),
          height(1 + bytes.up_to(70)),
          width(1 + bytes.up_to(140)),
          source{1 + bytes.up_to(40), 1 + bytes.up_to(40)} {}

    std::int64_t kind;
    bool bfloat16, channels_last;
    std::int64_t classes, height, width;
    sgdm::Size source;
};

struct Views {
    std::vector<std::int64_t> images, sizes;
    std::vector<double> crops;
    std::vector<std::uint8_t> flips;
    sgdm::Sampling sampling = sgdm::Sampling::centre;

    Views(Bytes& bytes, const Case& test) {
        for (std::int64_t image = 0; image < kImages; ++image) {
            images.push_back(image);
            sizes.insert(sizes.end(), {test.source.height, test.source.width});
            flips.push_back(static_cast<std::uint8_t>(bytes.up_to(1)));
            const std::int64_t x0 = bytes.up_to(test.source.width - 1), y0 = bytes.up_to(test.source.height - 1);
            const std::int64_t x1 = test.source.width - bytes.up_to(test.source.width - x0 - 1);
            const std::int64_t y1 = test.source.height - bytes.up_to(test.source.height - y0 - 1);
            for (const std::int64_t corner : {x0, y0, x1, y1}) {
                crops.push_back(static_cast<double>(corner));
            }
            if (bytes.up_to(30) == 0) {
                crops[crops.size() - 1 - static_cast<std::size_t>(bytes.up_to(3))] = bytes.coordinate();
            }
        }
        if (bytes.up_to(2) == 0) {
            sampling = sgdm::Sampling::pil_nearest;
        }
        if (bytes.up_to(30) == 0) {
            images[0] = bytes.take<std::int64_t>();
            sizes[0] = bytes.take<std::int32_t>();
        }
    }

    sgdm::Batch batch() const { return {images, sizes, crops, flips, sampling}; }
};

// What the spans of sgdm::Annotations look at. Exactly as large as said, so that a sanitizer sees the next byte.
struct Values {
    std::vector<double> coordinates;
    std::vector<std::uint32_t> counts;
    std::vector<std::uint8_t> characters;
    std::vector<std::int64_t> offsets, object_offsets, image_offsets, sizes;
    std::vector<std::int32_t> class_ids;
    std::int64_t objects;

    Values(Bytes& bytes, const Case& test) : objects(bytes.up_to(4)) {
        image_offsets = bytes.offsets(kImages, objects);
        for (std::int64_t object = 0; object < objects; ++object) {
            class_ids.push_back(static_cast<std::int32_t>(bytes.up_to(test.classes + (object == 3 ? 0 : -1))));
            sizes.insert(sizes.end(), {test.source.height, test.source.width});
        }
    }

    sgdm::Objects read(Bytes& bytes, const Case& test) {
        if (test.kind == 0) {
            coordinates.resize(static_cast<std::size_t>(4 * objects));
        } else if (test.kind == 1) {
            coordinates.resize(bytes.left() / 3 & ~std::size_t{bytes.up_to(20) == 0 ? 0u : 1u});
        }
        for (double& coordinate : coordinates) {
            coordinate = bytes.coordinate();
        }
        if (test.kind == 0) {
            return sgdm::Boxes{coordinates};
        }
        if (test.kind == 1) {
            object_offsets = bytes.offsets(objects, objects);
            offsets = bytes.offsets(objects, static_cast<std::int64_t>(coordinates.size()));
            return sgdm::Polygons{coordinates, offsets, object_offsets};
        }
        if (test.kind == 4) {
            characters.resize(static_cast<std::size_t>(objects * test.source.height * test.source.width));
            for (std::uint8_t& character : characters) {
                character = bytes.take<std::uint8_t>();
            }
            offsets = bytes.offsets(objects, static_cast<std::int64_t>(characters.size()));
            return sgdm::Masks{characters, offsets, sizes};
        }
        read_counts(bytes, test);
        if (test.kind == 2) {
            return sgdm::RunLengths{counts, offsets, sizes};
        }
        compress(bytes);
        return sgdm::CompressedRunLengths{characters, offsets, sizes};
    }

    // Some characters at most are not as they should be.
    void compress(Bytes& bytes) {
        std::string text;
        std::vector<std::int64_t> text_offsets = {0};
        for (std::size_t object = 0; object + 1 < offsets.size(); ++object) {
            const std::span<const std::uint32_t> all(counts);
            const auto begin = static_cast<std::size_t>(offsets[object]);
            sgdm::write_counts(all.subspan(begin, static_cast<std::size_t>(offsets[object + 1]) - begin), text);
            text_offsets.push_back(static_cast<std::int64_t>(text.size()));
        }
        characters.assign(text.begin(), text.end());
        offsets = text_offsets;
        for (std::int64_t changes = bytes.up_to(15) - 12; changes > 0 && !characters.empty(); --changes) {
            const std::size_t at = bytes.take<std::uint16_t>() % characters.size();
            const std::size_t end = std::min(characters.size(), at + 1 + static_cast<std::size_t>(bytes.up_to(20)));
            std::fill(characters.begin() + static_cast<std::ptrdiff_t>(at),
                      characters.begin() + static_cast<std::ptrdiff_t>(end), bytes.take<std::uint8_t>());
        }
    }

    // Runs whose sum is right for most objects: a mutation would hardly ever hit it.
    void read_counts(Bytes& bytes, const Case& test) {
        offsets = {0};
        for (std::int64_t object = 0; object < objects; ++object) {
            std::int64_t left = test.source.height * test.source.width;
            for (std::int64_t run = bytes.up_to(40); run > 0 && left > 0; --run) {
                const std::int64_t count = bytes.up_to(std::min<std::int64_t>(left, 255));
                counts.push_back(static_cast<std::uint32_t>(count));
                left -= count;
            }
            counts.push_back(bytes.up_to(60) == 0 ? bytes.take<std::uint32_t>() : static_cast<std::uint32_t>(left));
            offsets.push_back(static_cast<std::int64_t>(counts.size()));
        }
    }
};

template <typename T>
struct Buffer {
    std::vector<T> memory;
    sgdm::Tensor tensor;

    Buffer(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
        std::size_t size = 1;
        for (const std::int64_t length : shape) {
            size *= static_cast<std::size_t>(length);
        }
        memory.assign(size, 99);
        tensor = {reinterpret_cast<std::uintptr_t>(memory.data()), sizeof(T),
                  static_cast<std::int64_t>(size * sizeof(T)), std::move(shape), std::move(strides)};
    }
};

// `draw` writes an output; all forms in turn, each twice.
template <typename T>
void draw_all(const Case& test, const auto& draw_once) {
    const auto draw = [&](const sgdm::Output& output) {
        draw_once(output);
        const std::int64_t before = allocations;
        draw_once(output);
        expect(allocations - before <= 1, "one allocation a batch, none an image");
    };
    const auto [k, h, w] = std::array{test.classes, test.height, test.width};
    const auto strides = test.channels_last ? std::vector{k * h * w, std::int64_t{1}, k * w, k}
                                            : std::vector{k * h * w, h * w, w, std::int64_t{1}};
    const T one = sizeof(T) == 1 ? 1 : 0x3F80;
    Buffer<T> channels({kImages, k, h, w}, strides), mask({kImages, 1, h, w}, {h * w, h * w, w, 1}),
        presence({kImages, k}, {k, 1});
    draw(sgdm::channels_output(channels.tensor));
    draw(sgdm::mask_output(mask.tensor));
    draw(sgdm::presence_output(presence.tensor, h, w));
    for (const auto* memory : {&channels.memory, &mask.memory, &presence.memory}) {
        for (const T value : *memory) {
            expect(value == 0 || value == one, "channels, masks and presence hold 0 and 1");
        }
    }
    Buffer<std::uint8_t> labels({kImages, h, w}, {h * w, w, 1});
    draw(sgdm::labels_output(labels.tensor, k, 200));
    for (const std::uint8_t label : labels.memory) {
        expect(label < k || label == 200, "labels are classes or background");
    }
}

void draw_label_maps(Bytes& bytes, const Case& test) {
    const auto pixels = static_cast<std::size_t>(kImages * test.source.height * test.source.width);
    std::vector<std::int32_t> table(static_cast<std::size_t>(8 - bytes.up_to(8) / 8));
    for (std::int32_t& label : table) {
        label = static_cast<std::int32_t>(bytes.up_to(test.classes)) - 1;
    }
    const Views views(bytes, test);
    const auto offsets = bytes.offsets(kImages, static_cast<std::int64_t>(pixels));
    const auto draw = [&](const auto& labels) {
        const std::span<const std::int64_t> sizes(views.sizes);
        const sgdm::LabelMaps maps{std::span(labels), offsets, sizes, table, 0};
        draw_all<std::uint8_t>(test, [&](const sgdm::Output& output) { rasterize(maps, views.batch(), output, 1); });
    };
    if (test.bfloat16) {
        std::vector<std::int32_t> labels(pixels);
        for (std::int32_t& label : labels) {
            label = static_cast<std::int32_t>(bytes.up_to(7));
        }
        labels[0] = bytes.take<std::int32_t>();
        draw(static_cast<const std::vector<std::int32_t>&>(labels));
    } else {
        std::vector<std::uint8_t> labels(pixels);
        for (std::uint8_t& label : labels) {
            label = static_cast<std::uint8_t>(bytes.up_to(7));
        }
        labels.back() = bytes.take<std::uint8_t>();
        draw(static_cast<const std::vector<std::uint8_t>&>(labels));
    }
}

void draw_objects(Bytes& bytes, const Case& test) {
    const Views views(bytes, test);
    Values values(bytes, test);
    const auto overlap = static_cast<sgdm::Overlap>(bytes.up_to(2));
    const sgdm::Annotations annotations{values.read(bytes, test), values.image_offsets, values.class_ids};
    const auto draw = [&](const sgdm::Output& output) {
        const bool all = output.form == sgdm::Form::channels && test.bfloat16;
        rasterize(annotations, views.batch(), output, all ? sgdm::Overlap::multi_hot : overlap, 1);
    };
    test.bfloat16 ? draw_all<std::uint16_t>(test, draw) : draw_all<std::uint8_t>(test, draw);

    // What is encoded can be read again, and says the same again.
    const sgdm::Encoded encoded = encode(annotations, views.batch(), {test.height, test.width});
    std::vector<std::uint32_t> scratch;
    for (std::size_t object = 0; object + 1 < encoded.offsets.size(); ++object) {
        const auto begin = static_cast<std::size_t>(encoded.offsets[object]);
        const auto end = static_cast<std::size_t>(encoded.offsets[object + 1]);
        const std::string text = encoded.text.substr(begin, end - begin);
        const auto counts =
            sgdm::read_counts({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}, {}, scratch);
        std::int64_t sum = 0;
        for (const std::uint32_t count : counts) {
            sum += count;
        }
        std::string again;
        sgdm::write_counts(counts, again);
        expect(sum == test.height * test.width && again == text, "encoded run lengths cover the mask");
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Bytes bytes(data, size);
    const Case test(bytes);
    try {
        test.kind == 5 ? draw_label_maps(bytes, test) : draw_objects(bytes, test);
    } catch (const std::invalid_argument& refusal) {
        expect(*refusal.what() != '\0', "a refusal says why");
    }
    return 0;
}
