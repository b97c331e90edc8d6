// A small coverage-guided fuzzer, for compilers without libFuzzer. A seed gives the same inputs every time.
// The library is compiled with -fsanitize-coverage=trace-pc, which calls back at every branch.
//   fuzz_raster SECONDS [SEED]
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr std::size_t kLongestInput = 4096;
std::array<std::uint8_t, 1 << 16> seen;
bool found_new;

using Input = std::vector<std::uint8_t>;
using Random = std::mt19937_64;

std::size_t below(Random& random, std::size_t limit) { return static_cast<std::size_t>(random() % limit); }

std::uint8_t any_byte(Random& random) {
    constexpr std::array<std::uint8_t, 8> edges = {0, 1, 0x7f, 0x80, 0xff, '0', 'O', 'o'};
    return random() % 4 == 0 ? edges[below(random, edges.size())] : static_cast<std::uint8_t>(random());
}

Input mutated(const std::vector<Input>& corpus, Random& random) {
    Input input = corpus[below(random, corpus.size())];
    for (std::size_t change = 1 + below(random, 8); change > 0; --change) {
        const std::size_t at = below(random, input.size() + 1);
        const auto position = input.begin() + static_cast<std::ptrdiff_t>(at);
        switch (random() % 4) {
            case 0:
                input.insert(position, any_byte(random));
                break;
            case 1:
                input.resize(at);
                break;
            case 2: {
                const Input& other = corpus[below(random, corpus.size())];
                const auto from = static_cast<std::ptrdiff_t>(below(random, other.size() + 1));
                input.insert(position, other.begin() + from, other.end());
                break;
            }
            default:
                if (at < input.size()) {
                    input[at] = any_byte(random);
                }
        }
    }
    input.resize(std::min(input.size(), kLongestInput));
    return input;
}

}  // namespace

extern "C" void __sanitizer_cov_trace_pc() {
    const auto place = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
    std::uint8_t& mark = seen[(place ^ (place >> 16)) & (seen.size() - 1)];
    found_new |= mark == 0;
    mark = 1;
}

int main(int count, char** arguments) {
    const double seconds = count > 1 ? std::atof(arguments[1]) : 10;
    Random random(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
    std::vector<Input> corpus;
    for (std::uint8_t kind = 0; kind <= 5; ++kind) {
        Input input(600);
        for (std::uint8_t& byte : input) {
            byte = static_cast<std::uint8_t>(random());
        }
        input[0] = kind;
        corpus.push_back(input);
    }
    const auto start = std::chrono::steady_clock::now();
    std::size_t runs = 0;
    for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds; ++runs) {
        const Input input = mutated(corpus, random);
        found_new = false;
        LLVMFuzzerTestOneInput(input.data(), input.size());
        if (found_new) {
            corpus.push_back(input);
        }
    }
    std::size_t places = 0;
    for (const std::uint8_t mark : seen) {
        places += mark;
    }
    std::printf("%zu inputs, %zu kept, %zu places reached\n", runs, corpus.size(), places);
}
