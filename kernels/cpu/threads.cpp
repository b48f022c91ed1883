#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "host.h"

namespace isobit {
namespace {

constexpr int kSpin = 4000;
// About a millisecond, in which anybody else may have the core. A helper that sleeps between two
// steps of a model wakes late: a virtual machine gives an idle core away.
constexpr int kYields = 4000;
constexpr uint32_t kClosed = 1u << 31;

class Pool {
 public:
  explicit Pool(int helpers) {
    for (int i = 0; i < helpers; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
      epoch_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  void run(int64_t count, Task task, const void* context) {
    count_ = count;
    task_ = task;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    left_.store(0, std::memory_order_relaxed);
    joined_.store(0, std::memory_order_release);
    epoch_.fetch_add(1);
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    drain();
    // A helper that has not woken by now is not waited for: it finds the door closed.
    const uint32_t joined = joined_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (int spin = 0; left_.load(std::memory_order_acquire) != joined; ++spin) {
      if (spin < kSpin) {
        relax();
      } else {
        sched_yield();
      }
    }
  }

 private:
  void drain() {
    FloatMode mode;
    int64_t begin = next_.load(std::memory_order_relaxed);
    while (begin < count_) {
      // Neighbours lie side by side in memory: long stretches first, single tasks at the end.
      const int64_t fair = (count_ - begin) / (2 * (static_cast<int64_t>(workers_.size()) + 1));
      const int64_t end = begin + (fair > 1 ? fair : 1);
      if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      for (; begin < end; ++begin) task_(context_, begin);
      begin = next_.load(std::memory_order_relaxed);
    }
  }

  bool join_job() {
    uint32_t joined = joined_.load(std::memory_order_acquire);
    while (!(joined & kClosed)) {
      if (joined_.compare_exchange_weak(joined, joined + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpin && epoch_.load(std::memory_order_acquire) == seen; ++spin) {
        relax();
      }
      for (int i = 0; i < kYields && epoch_.load(std::memory_order_acquire) == seen; ++i) {
        sched_yield();
      }
      if (epoch_.load() == seen) {
        sleepers_.fetch_add(1);
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load() != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = epoch_.load();
      if (stop_.load()) return;
      if (join_job()) {
        drain();
        left_.fetch_add(1, std::memory_order_release);
      }
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> joined_{kClosed};
  alignas(64) std::atomic<uint32_t> left_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  Task task_ = nullptr;
  const void* context_ = nullptr;
};

std::mutex* door = new std::mutex;
Pool* pool = nullptr;
int wanted = usable_cores();

// A forked child owns no helper threads and may find the mutex locked: it starts over.
void after_fork() {
  door = new std::mutex;
  pool = nullptr;
}

const int registered = pthread_atfork(nullptr, nullptr, after_fork);

void run_inline(int64_t count, Task task, const void* context) {
  FloatMode mode;
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace

void parallel_for(int64_t count, Task task, const void* context) {
  if (count <= 1 || wanted <= 1) return run_inline(count, task, context);
  std::unique_lock<std::mutex> lock(*door, std::try_to_lock);
  if (!lock.owns_lock()) return run_inline(count, task, context);
  if (!pool) pool = new Pool(wanted - 1);
  pool->run(count, task, context);
}

void set_threads(int count) {
  std::lock_guard<std::mutex> lock(*door);
  if (count == wanted) return;
  delete pool;
  pool = nullptr;
  wanted = count;
}

int threads() { return wanted; }

}  // namespace isobit
