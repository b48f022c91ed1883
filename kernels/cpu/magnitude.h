// The largest magnitude of a row, and whether it is a number at all.
#pragma once

#include "rows.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int32_t kInfinity = 0x7f800000;

// The bits of the largest magnitude. They are ordered as the numbers are, with NaN on top.
template <class T>
int32_t magnitude(const T* x, int64_t width) {
  Ints top = broadcast(int32_t{0});
  each_lanes(width, [&](int64_t i, int64_t count) {
    const Lanes value = load_at(x + i, count);
    ISOBIT_PARTS {
      const IntPart bits = (IntPart)value.part[i] & 0x7fffffff;
      top.part[i] = bits > top.part[i] ? bits : top.part[i];
    }
  });
  int32_t lane[kLanes], most = 0;
  store(lane, top);
  for (int i = 0; i < kLanes; ++i) most = lane[i] > most ? lane[i] : most;
  return most;
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
