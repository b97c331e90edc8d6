// Run lengths to masks without the full-size mask between: most runs lie in columns that no target pixel looks at.
#include "run_lengths.hpp"

#include <bit>
#include <numeric>

#include "objects.hpp"
#include "run_length_codec.hpp"

namespace sgdm {

namespace {

void check_sum(std::span<const std::uint32_t> counts, const Target& target) {
    const auto sum = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
    const auto pixels = static_cast<std::uint64_t>(target.view.height) * static_cast<std::uint64_t>(target.view.width);
    if (sum != pixels) {
        refuse(target.place, "its counts sum to " + std::to_string(sum) + ", but " +
                                 std::to_string(target.view.height) + " x " + std::to_string(target.view.width) +
                                 " pixels are " + std::to_string(pixels));
    }
}

// Walks the runs and the sampled columns of the source side by side.
void draw_runs(std::span<const std::uint32_t> counts, const Target& target, const SampledAxis& columns,
               const SampledAxis& rows, BitMask& mask) {
    const std::int64_t height = target.view.height;
    const auto column_begin = [&](std::int64_t column) {
        return columns.source[static_cast<std::size_t>(column)] * height;
    };
    const auto row_of = [&](std::int64_t source_row) { return rows.first[static_cast<std::size_t>(source_row)]; };
    std::int64_t column = 0;  // of the target: the first one that is not yet done
    std::int64_t begin = column_begin(0);
    std::int64_t run_end = 0;
    bool inside = false;
    for (const std::uint32_t count : counts) {
        const std::int64_t run_begin = run_end;
        run_end += count;
        while (run_end > begin) {
            const std::int64_t end = begin + height;
            // Enlarged, a column of the source is several of the target.
            const std::int64_t next =
                columns.first[static_cast<std::size_t>(columns.source[static_cast<std::size_t>(column)]) + 1];
            if (inside) {
                const std::int64_t top = row_of(std::max(run_begin, begin) - begin);
                const std::int64_t bottom = row_of(std::min(run_end, end) - begin);
                const std::int64_t left = target.view.flip ? target.width - next : column;
                const std::int64_t right = left + next - column;
                if (top < bottom) {
                    mask.toggle_columns(top, left, right);
                    mask.toggle_columns(bottom, left, right);
                }
            }
            if (run_end < end) {
                break;
            }
            column = next;
            if (column == target.width) {
                return;
            }
            begin = column_begin(column);
        }
        inside = !inside;
    }
}

void draw_counts(std::span<const std::uint32_t> counts, const Target& target, Scratch& scratch) {
    check_sum(counts, target);
    draw_runs(counts, target, scratch.columns, scratch.rows, scratch.object);
    scratch.object.fill_down();
}

// Where a mask changes going down its columns; a column that ends inside changes at its end too.
struct Changes {
    std::vector<std::size_t> begin;   // [width + 1], into rows
    std::vector<std::int64_t> rows;  // ascending within a column
};

template <typename Visit>
void visit_changes(const BitMask& mask, const Visit& visit) {
    for (std::int64_t row = mask.begin_row(); row <= mask.end_row(); ++row) {
        for (std::size_t word = 0; word < mask.words(); ++word) {
            const std::uint64_t above = row == mask.begin_row() ? 0 : mask.row(row - 1)[word];
            const std::uint64_t here = row == mask.end_row() ? 0 : mask.row(row)[word];
            for (std::uint64_t bits = above ^ here; bits != 0; bits &= bits - 1) {
                visit(row, 64 * word + static_cast<std::size_t>(std::countr_zero(bits)));
            }
        }
    }
}

Changes changes_of(const BitMask& mask, std::size_t width) {
    Changes changes;
    changes.begin.assign(width + 2, 0);
    visit_changes(mask, [&](std::int64_t, std::size_t column) { ++changes.begin[column + 2]; });
    std::partial_sum(changes.begin.begin(), changes.begin.end(), changes.begin.begin());
    changes.rows.resize(changes.begin.back());
    visit_changes(mask, [&](std::int64_t row, std::size_t column) {
        changes.rows[changes.begin[column + 1]++] = row;
    });
    return changes;
}

}  // namespace

void draw(const RunLengths& run_lengths, std::size_t object, const Target& target, Scratch& scratch) {
    check_size(run_lengths.sizes, object, target);
    const Range range =
        range_of(run_lengths.offsets, object, run_lengths.counts.size(), "counts", target.place);
    draw_counts(run_lengths.counts.subspan(range.begin, range.size()), target, scratch);
}

void draw(const CompressedRunLengths& run_lengths, std::size_t object, const Target& target, Scratch& scratch) {
    check_size(run_lengths.sizes, object, target);
    const Range range =
        range_of(run_lengths.offsets, object, run_lengths.text.size(), "characters", target.place);
    const auto text = run_lengths.text.subspan(range.begin, range.size());
    draw_counts(read_counts(text, target.place, scratch.counts), target, scratch);
}

std::vector<std::uint32_t> counts_of(const BitMask& mask, std::int64_t width) {
    const std::int64_t height = mask.height();
    const Changes changes = changes_of(mask, static_cast<std::size_t>(width));
    std::vector<std::uint32_t> counts;
    std::int64_t previous = 0;
    const auto change_at = [&](std::int64_t pixel) {
        if (pixel == previous && !counts.empty()) {
            // Inside at the end of one column and at the start of the next: the run goes on.
            previous -= counts.back();
            counts.pop_back();
        } else {
            counts.push_back(static_cast<std::uint32_t>(pixel - previous));
            previous = pixel;
        }
    };
    for (std::int64_t column = 0; column < width; ++column) {
        const auto number = static_cast<std::size_t>(column);
        for (std::size_t change = changes.begin[number]; change < changes.begin[number + 1]; ++change) {
            change_at(column * height + changes.rows[change]);
        }
    }
    if (previous < height * width || counts.empty()) {
        counts.push_back(static_cast<std::uint32_t>(height * width - previous));
    }
    return counts;
}

}  // namespace sgdm
