#include "machine/threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cassert>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "machine/host.h"

namespace isobit {
namespace {

constexpr int kSpin = 4000;
// About a millisecond, in which anybody else may have the core. A helper that sleeps between two
// steps of a model wakes late: a virtual machine gives an idle core away.
constexpr int kYields = 4000;
constexpr uint32_t kClosed = 1u << 31;

// Units [begin, end) that a thread has before it. It takes from the front, others from the back: as
// long as nobody runs out of work, each thread touches a cache line of its own.
class alignas(64) Share {
 public:
  void give(int64_t begin, int64_t end) {
    span_.store({static_cast<uint32_t>(begin), static_cast<uint32_t>(end)},
                std::memory_order_relaxed);
  }

  // Runs op(unit) until nothing is left.
  template <class Op>
  void work(Op op) {
    Span span = span_.load(std::memory_order_relaxed);
    while (span.begin < span.end) {
      const uint32_t part = (span.end - span.begin) / 4;
      const uint32_t end = span.begin + (part > 1 ? part : 1);
      if (!span_.compare_exchange_weak(span, {end, span.end}, std::memory_order_relaxed)) continue;
      for (uint32_t unit = span.begin; unit < end; ++unit) op(unit);
      span = span_.load(std::memory_order_relaxed);
    }
  }

  // Takes half of what another thread has not begun, the larger one of an odd number.
  bool take_from(Share& other) {
    Span span = other.span_.load(std::memory_order_relaxed);
    while (span.begin < span.end) {
      const uint32_t middle = span.begin + (span.end - span.begin) / 2;
      if (other.span_.compare_exchange_weak(span, {span.begin, middle},
                                            std::memory_order_relaxed)) {
        give(middle, span.end);
        return true;
      }
    }
    return false;
  }

 private:
  struct alignas(8) Span {
    uint32_t begin, end;
  };
  std::atomic<Span> span_{};
};

class Pool {
 public:
  explicit Pool(int helpers) : shares_(helpers + 1) {
    for (int i = 0; i < helpers; ++i) workers_.emplace_back([this, i] { work(i + 1); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
      job_.epoch.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  void run(int64_t count, Task task, const void* context) {
    assert(count < int64_t{1} << 32);
    const int64_t threads = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < threads; ++i)
      shares_[i].give(count * i / threads, count * (i + 1) / threads);
    job_.task = task;
    job_.context = context;
    left_.store(0, std::memory_order_relaxed);
    joined_.store(0, std::memory_order_release);
    job_.epoch.fetch_add(1);
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    drain(0);
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
  // What helpers watch and what they then need, in one cache line.
  struct alignas(64) Job {
    std::atomic<uint64_t> epoch{0};
    Task task = nullptr;
    const void* context = nullptr;
  };

  void drain(size_t own) {
    FloatMode mode;
    const Task task = job_.task;
    const void* context = job_.context;
    do {
      shares_[own].work([&](int64_t unit) { task(context, unit); });
    } while (refill(own));
  }

  bool refill(size_t own) {
    for (size_t i = 1; i < shares_.size(); ++i) {
      if (shares_[own].take_from(shares_[(own + i) % shares_.size()])) return true;
    }
    return false;
  }

  bool join_job() {
    uint32_t joined = joined_.load(std::memory_order_acquire);
    while (!(joined & kClosed)) {
      if (joined_.compare_exchange_weak(joined, joined + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work(size_t own) {
    uint64_t seen = 0;
    const auto& epoch = job_.epoch;
    for (;;) {
      for (int spin = 0; spin < kSpin && epoch.load(std::memory_order_acquire) == seen; ++spin) {
        relax();
      }
      for (int i = 0; i < kYields && epoch.load(std::memory_order_acquire) == seen; ++i) {
        sched_yield();
      }
      if (epoch.load() == seen) {
        sleepers_.fetch_add(1);
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch.load() != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = epoch.load();
      if (stop_.load()) return;
      if (join_job()) {
        drain(own);
        left_.fetch_add(1, std::memory_order_release);
      }
    }
  }

  std::vector<std::thread> workers_;
  std::vector<Share> shares_;
  Job job_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> joined_{kClosed};
  alignas(64) std::atomic<uint32_t> left_{0};
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
