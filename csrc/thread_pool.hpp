// Threads that wait between batches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace sgdm {

// Calls task(0) to task(count - 1), each once, on the caller and up to threads - 1 others. Which thread takes which
// is open; where tasks throw, the exception of the lowest of them is thrown here, whatever the number of threads.
//
// Calls with one thread touch nothing shared. Others take turns. Threads are started when first needed and joined at
// exit. A forked child has none of its parent's threads: it starts its own, and fork() waits for a batch to end.
void parallel_for(std::int64_t count, std::int64_t threads, const std::function<void(std::size_t)>& task);

}  // namespace sgdm
