// The largest magnitude of a row, and whether it is a number at all.
#pragma once

#include "ops/rows.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int32_t kInfinity = 0x7f800000;

// Bits of magnitudes are ordered as the numbers are, with NaN on top.
ISOBIT_INLINE Ints larger(Ints top, Lanes value) {
  ISOBIT_PARTS {
    const IntPart bits = (IntPart)value.part[i] & 0x7fffffff;
    top.part[i] = bits > top.part[i] ? bits : top.part[i];
  }
  return top;
}
ISOBIT_INLINE int32_t largest(Ints top) {
  int32_t lane[kLanes], most = 0;
  store(lane, top);
  for (int i = 0; i < kLanes; ++i) most = lane[i] > most ? lane[i] : most;
  return most;
}

// The bits of the largest magnitude of a row.
template <class T>
int32_t magnitude(const T* x, int64_t width) {
  Ints top = broadcast(int32_t{0});
  each_lanes(width, [&](int64_t i, int64_t count) { top = larger(top, load_at(x + i, count)); });
  return largest(top);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
