// Reading memory and nothing else.
#pragma once

#include "machine/simd.h"
#include "machine/threads.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

void read_unit(const void* context, int64_t unit) {
  constexpr int kStreams = 4, kAheadBytes = 12288;
  const Read& a = *static_cast<const Read*>(context);
  const unsigned char* from = static_cast<const unsigned char*>(a.from) + unit * kReadUnit;
  Ints sum[kStreams];
  for (int s = 0; s < kStreams; ++s) sum[s] = broadcast(int32_t{0});
  for (int64_t at = 0; at < kReadUnit; at += kStreams * 64) {
    for (int s = 0; s < kStreams; ++s) {
      __builtin_prefetch(from + at + s * 64 + kAheadBytes, 0, 0);
      const Ints line = load_ints(from + at + s * 64);
      ISOBIT_PARTS sum[s].part[i] = (IntPart)((BitPart)sum[s].part[i] + (BitPart)line.part[i]);
    }
  }
  int32_t lane[kLanes];
  uint32_t total = 0;
  for (int s = 0; s < kStreams; ++s) {
    store(lane, sum[s]);
    for (int i = 0; i < kLanes; ++i) total += static_cast<uint32_t>(lane[i]);
  }
  a.sums[unit] = total;
}

void read(const Read& a) { parallel_for(a.bytes / kReadUnit, read_unit, &a); }

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
