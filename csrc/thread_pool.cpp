#include "thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace sgdm {

namespace {

using Task = std::function<void(std::size_t)>;

class Job {
   public:
    Job(std::int64_t count, const Task& task) : count_(count), task_(task) {}

    // Takes numbers in rising order, so every number below one that failed has been taken as well, and the lowest
    // failure is always found.
    void work() noexcept {
        while (!failed_.load(std::memory_order_relaxed)) {
            const std::int64_t number = next_.fetch_add(1, std::memory_order_relaxed);
            if (number >= count_) {
                return;
            }
            try {
                task_(static_cast<std::size_t>(number));
            } catch (...) {
                const std::lock_guard lock(mutex_);
                if (!error_ || number < failure_) {
                    error_ = std::current_exception();
                    failure_ = number;
                }
                failed_.store(true, std::memory_order_relaxed);
            }
        }
    }

    void rethrow() const {
        if (error_) {
            std::rethrow_exception(error_);
        }
    }

   private:
    const std::int64_t count_;
    const Task& task_;
    std::atomic<std::int64_t> next_ = 0;
    std::atomic<bool> failed_ = false;
    std::mutex mutex_;
    std::exception_ptr error_;
    std::int64_t failure_ = 0;
};

class Pool {
   public:
    ~Pool() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }

    void run(Job& job, std::size_t helpers) {
        while (threads_.size() < helpers) {
            threads_.emplace_back([this] { wait_for_work(); });
        }
        {
            const std::lock_guard lock(mutex_);
            job_ = &job;
            wanted_ = helpers;
        }
        wake_.notify_all();
        job.work();
        std::unique_lock lock(mutex_);
        wanted_ = 0;  // whoever wakes only now is not needed any more
        done_.wait(lock, [this] { return busy_ == 0; });
    }

   private:
    void wait_for_work() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return stop_ || wanted_ > 0; });
            if (stop_) {
                return;
            }
            --wanted_;
            ++busy_;
            Job* const job = job_;
            lock.unlock();
            job->work();
            lock.lock();
            if (--busy_ == 0) {
                done_.notify_one();
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    Job* job_ = nullptr;
    std::size_t wanted_ = 0, busy_ = 0;
    bool stop_ = false;
};

std::mutex turn;  // held by the call whose batch runs
Pool* pool = nullptr;

struct JoinAtExit {
    ~JoinAtExit() {
        const std::lock_guard lock(turn);
        delete pool;
        pool = nullptr;
    }
} join_at_exit;

// No thread may be in the middle of anything while the process is copied. The child forgets the pool, whose threads
// it does not have.
const int fork_handlers = pthread_atfork([] { turn.lock(); }, [] { turn.unlock(); },
                                         [] {
                                             pool = nullptr;
                                             turn.unlock();
                                         });

}  // namespace

void parallel_for(std::int64_t count, std::int64_t threads, const Task& task) {
    Job job(count, task);
    if (std::min(threads, count) <= 1) {
        job.work();
    } else {
        const std::lock_guard lock(turn);
        if (pool == nullptr) {
            pool = new Pool;
        }
        pool->run(job, static_cast<std::size_t>(std::min(threads, count) - 1));
    }
    job.rethrow();
}

}  // namespace sgdm
