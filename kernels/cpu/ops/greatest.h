// Greedy choice: the first of the greatest logits.
#pragma once

#include "ops/magnitude.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

// A tail is filled up with its own first number.
ISOBIT_INLINE Lanes lanes_or_first(const float* x, int64_t count) {
  if (count == kLanes) return load(x);
  float some[kLanes];
  store(some, broadcast(x[0]));
  memcpy(some, x, count * sizeof(float));
  return load(some);
}

ISOBIT_INLINE bool any(Lanes value, float wanted) {
  BitPart found = {};
  ISOBIT_PARTS found |= (BitPart)(value.part[i] == wanted);
  uint32_t lane[kWidth], sum = 0;
  memcpy(lane, &found, sizeof(lane));
  for (int i = 0; i < kWidth; ++i) sum |= lane[i];
  return sum;
}

int64_t first_greatest(const float* x, int64_t width) {
  Lanes top = broadcast(-__builtin_inff());
  Ints magnitude = broadcast(int32_t{0});
  each_lanes(width, [&](int64_t i, int64_t count) {
    const Lanes value = lanes_or_first(x + i, count);
    magnitude = larger(magnitude, value);
    top = select(value > top, value, top);
  });
  if (largest(magnitude) >= kInfinity) return -1;
  const float most = largest(top);
  int64_t i = 0;
  // Whole vectors without it are passed over.
  for (; width - i >= kLanes && !any(load(x + i), most); i += kLanes) {
  }
  while (x[i] != most) ++i;
  return i;
}

void greatest(const Greatest& a) {
  parallel_for(a.rows, [](const void* context, int64_t row) {
    const Greatest& a = *static_cast<const Greatest*>(context);
    a.index[row] = first_greatest(a.x + row * a.width, a.width);
  }, &a);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
