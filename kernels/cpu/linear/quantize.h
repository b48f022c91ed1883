// Activations to int8 codes, one scale per row and segment: no row sees another, and no rank needs
// to know another's largest magnitude. Every step is one exact or correctly rounded operation, so
// the codes are the same on every machine.
//
// The rule, in fp32: scale = absmax / 127, or input_scale; code = x / scale, to the nearest integer,
// ties to even. Of a dynamic scale the extremes are then 127 and -127, whatever the last bit of
// absmax; with absmax / 127.5, as compressed-tensors has it, they lie on a tie, and the last bit
// decides between -127 and -128.
#pragma once

#include "ops/magnitude.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

// x / scale, kept within -128..127 and rounded to the nearest integer, ties to even.
ISOBIT_INLINE Ints code_of(Lanes x, Lanes scale) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer
  const Lanes low = broadcast(-128.f), high = broadcast(127.f);
  Lanes value = x / scale;
  value = select(value > high, high, value);
  value = select(low > value, low, value) + broadcast(kRound);
  Ints r;
  ISOBIT_PARTS r.part[i] = (IntPart)value.part[i] - 0x4b400000;
  return r;
}

ISOBIT_INLINE void store_codes(int8_t* to, const int32_t* code, int64_t count) {
  int8_t byte[kLanes];
  for (int i = 0; i < kLanes; ++i) byte[i] = static_cast<int8_t>(code[i]);
  memcpy(to, byte, count);
}
ISOBIT_INLINE void store_codes(int16_t* to, const int32_t* code, int64_t count) {
  int16_t half[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 4; ++j) half[i + j / 2 + j % 2 * 2] = static_cast<int16_t>(code[i + j]);
  }
  memcpy(to, half, count * 2);
}

// Returns the sum of the codes.
template <class T, class Code>
int32_t encode(const T* x, int64_t width, float scale, Code* codes) {
  Ints sum = broadcast(int32_t{0});
  int32_t lane[kLanes], total = 0;
  each_lanes(width, [&](int64_t i, int64_t count) {
    const Ints code = code_of(load_at(x + i, count), broadcast(scale));
    ISOBIT_PARTS sum.part[i] += code.part[i];
    store(lane, code);
    store_codes(codes + i, lane, count);
  });
  store(lane, sum);
  for (int i = 0; i < kLanes; ++i) total += lane[i];
  return total;
}

template <class T, class Code>
void quantize_row(const Quantize& a, int64_t row) {
  for (int64_t segment = 0; segment < a.segments; ++segment) {
    const int64_t place = segment * a.rows + row, run = a.segment_offsets[segment];
    if (run == a.segment_offsets[segment + 1]) continue;
    const int64_t begin = a.run_offsets[run], width = a.run_offsets[run + 1] - begin;
    const T* x = static_cast<const T*>(a.x) + row * a.packed_k + begin;
    Code* codes = static_cast<Code*>(a.codes) + row * a.packed_k + begin;
    const int32_t most = magnitude(x, width);
    if (most >= kInfinity) {  // no integer stands for these: the scale makes the products NaN
      memset(codes, 0, width * sizeof(Code));
      a.scales[place] = __builtin_nanf("");
      a.corrections[place] = 0;
      continue;
    }
    float scale = a.input_scale > 0.f ? a.input_scale : float_of(most) / 127.f;
    if (scale == 0.f) scale = 1.f;  // zeros, or so near to zero that the quotient vanished
    a.scales[place] = scale;
    a.corrections[place] =
        static_cast<int32_t>(-128u * static_cast<uint32_t>(encode(x, width, scale, codes)));
  }
}

void quantize(const Quantize& a) {
  parallel_for(a.rows, [](const void* context, int64_t row) {
    const Quantize& a = *static_cast<const Quantize*>(context);
    with_type(a.number, [&](auto t) {
      using T = decltype(t);
      a.form == Codes::bytes ? quantize_row<T, int8_t>(a, row) : quantize_row<T, int16_t>(a, row);
    });
  }, &a);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
