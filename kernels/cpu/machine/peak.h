// Arithmetic in registers and nothing else.
#pragma once

#include "machine/simd.h"
#include "machine/threads.h"

#define ISOBIT_UNROLL_CHAINS _Pragma("GCC unroll 16")

namespace isobit {
namespace ISOBIT_SET {
namespace {

// Independent accumulators: enough to hide latency, few enough for the registers.
constexpr int kChains = kWidth == 16 ? 16 : kWidth == 8 ? 6 : 3;

// Hides a value from the optimizer, which would otherwise see through the loop.
ISOBIT_INLINE Lanes hidden(Lanes value) {
#if defined(__SSE2__)
  ISOBIT_PARTS asm volatile("" : "+v"(value.part[i]));
#else
  ISOBIT_PARTS asm volatile("" : "+w"(value.part[i]));
#endif
  return value;
}

// Step is what a kernel does per weight vector: Lanes step(Lanes sum).
template <class Step>
void peak_task(const void* context, int64_t task) {
  const Peak& a = *static_cast<const Peak*>(context);
  Lanes sum[kChains];
  ISOBIT_UNROLL_CHAINS for (int i = 0; i < kChains; ++i)
    sum[i] = broadcast(static_cast<float>(i));
  for (int64_t round = 0; round < a.rounds; ++round) {
    ISOBIT_UNROLL_CHAINS for (int i = 0; i < kChains; ++i)
      sum[i] = hidden(Step::step(sum[i]));
  }
  ISOBIT_UNROLL_CHAINS for (int i = 1; i < kChains; ++i) sum[0] = sum[0] + sum[i];
  float lane[kLanes];
  store(lane, sum[0]);
  a.sums[task] = lane[0];
}

// Returns how many operations one round of a task is.
template <class Step>
int64_t run_peak(const Peak& a, int64_t tasks) {
  parallel_for(tasks, peak_task<Step>, &a);
  return kChains * kLanes * Step::kOperations;
}

struct MultiplyAdd {
  static constexpr int kOperations = 2;
  ISOBIT_INLINE Lanes step(Lanes sum) { return fma(sum, broadcast(.5f), broadcast(1.f)); }
};

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
