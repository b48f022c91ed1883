// Activations as int8 codes against int8 weights: an int32 sum per segment, exact in any order, and
// then three fp32 steps, the same on every machine.
//
// A weight is stored as w + 128, a byte without sign: sum(q * w) = sum(q * code) - 128 * sum(q).
// The second part is what every sum begins with. On the way a sum may wrap around; in the end it
// fits in 32 bits, because no segment is longer than 131071.
//
// A line has 4 k; x are the 32 bits of activations that belong to one step.
#pragma once

#include "linear/block.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

struct Exact {
  using X = int32_t;
  using Line = Ints;
  using Value = Ints;
  using Sum = Ints;
  struct Zero {};
  static constexpr int kLineK = 4, kBytes = 64;
  static constexpr bool kDear = false;
  ISOBIT_INLINE Zero zero(const Linear&, int64_t, int64_t) { return {}; }
  ISOBIT_INLINE Ints load(const unsigned char* from, Zero) { return load_ints(from); }
  ISOBIT_INLINE Ints begin(const Linear& a, int64_t segment, int64_t row) {
    return broadcast(a.corrections[segment * a.rows + row]);
  }
  ISOBIT_INLINE Lanes end(const Linear& a, int64_t segment, int64_t row, Lanes scale, Ints sum,
                          Lanes) {
    return to_float(sum) * broadcast(a.x_scales[segment * a.rows + row]) * scale;
  }
};

// Pairs of 16-bit products: the bytes k = 0, 2 of a word in one step, k = 1, 3 in the other.
struct Pairs : Exact {
  static constexpr int kSteps = 2;
  ISOBIT_INLINE Ints value(Ints line, int step, Zero) {
    ISOBIT_PARTS line.part[i] = (line.part[i] >> (8 * step)) & 0x00ff00ff;
    return line;
  }
  ISOBIT_INLINE Ints dot(Ints value, int32_t x, Ints sum) {
    const Ints q = broadcast(x);
    ISOBIT_PARTS {
      sum.part[i] = (IntPart)((BitPart)sum.part[i] + (BitPart)products(value.part[i], q.part[i]));
    }
    return sum;
  }
  ISOBIT_INLINE IntPart products(IntPart a, IntPart b) {
#if defined(__AVX512BW__)
    return (IntPart)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (IntPart)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (IntPart)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return (a & 0xffff) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
