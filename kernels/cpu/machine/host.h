// What a thread needs to know of the processor that it runs on, and to tell it.
#pragma once

#include <sched.h>

#include <thread>

#ifdef ISOBIT_X86
#include <immintrin.h>
#endif

namespace isobit {

// To be called in a loop that waits for memory to change.
inline void relax() {
#ifdef ISOBIT_X86
  _mm_pause();
#endif
}

// A caller may have switched denormals off for its own thread only. The same bits on every thread
// and rank need one mode on all of them.
class FloatMode {
 public:
#ifdef ISOBIT_X86
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FloatMode() {}
#endif
};

// Cores that this process may use.
inline int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count ? static_cast<int>(count) : 1;
}

}  // namespace isobit
