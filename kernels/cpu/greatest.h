// Greedy choice: the first of the greatest logits.
#pragma once

#include "magnitude.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

int64_t first_greatest(const float* x, int64_t width) {
  if (magnitude(x, width) >= kInfinity) return -1;
  Lanes top = broadcast(-__builtin_inff());
  each_lanes(width, [&](int64_t i, int64_t count) {
    // A tail is filled up with its own first number.
    Lanes value = broadcast(x[i]);
    if (count == kLanes) {
      value = load(x + i);
    } else {
      float some[kLanes];
      store(some, value);
      memcpy(some, x + i, count * sizeof(float));
      value = load(some);
    }
    top = select(value > top, value, top);
  });
  const float most = largest(top);
  int64_t i = 0;
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
