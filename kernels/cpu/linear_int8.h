// Activations as int8 codes against int8 weights: an int32 sum per segment, exact in any order, and
// then three fp32 steps, the same on every machine.
//
// A weight is stored as w + 128, a byte without sign: sum(q * w) = sum(q * code) - 128 * sum(q).
// The second part is what every sum begins with. On the way a sum may wrap around; in the end it
// fits in 32 bits, because no segment is longer than 131071.
//
// A Dot says how a line of 4 k is multiplied: kSteps, Value value(line, step), and
// Ints dot(value, x, sum), where x are the 32 bits of activations that belong to one step.
#pragma once

#include "linear_block.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

template <class Dot>
struct Exact {
  template <int R, int T>
  static void run(const Linear& a, int64_t segment, int64_t row, int64_t strip,
                  Lanes (&out)[R][T]) {
    const int64_t lines = a.packed_k / 4;
    const int64_t stride = lines * Dot::kSteps * 4;
    const unsigned char* x = static_cast<const unsigned char*>(a.x) + row * stride;
    const unsigned char* data = strip_data(a, strip, lines, 64);
    const int64_t place = segment * a.rows + row;
    const int64_t run = a.segment_offsets[segment];

    ISOBIT_UNROLL for (int m = 0; m < R; ++m)
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) out[m][t] = zero();

    if (run < a.segment_offsets[segment + 1]) {
      Ints sum[R][T];
      ISOBIT_UNROLL for (int m = 0; m < R; ++m)
        ISOBIT_UNROLL for (int t = 0; t < T; ++t) sum[m][t] = broadcast(a.corrections[place + m]);

      const int64_t end = a.run_offsets[run + 1] / 4;
      for (int64_t line = a.run_offsets[run] / 4; line < end; ++line) {
        Ints raw[T];
        ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
          const unsigned char* from = data + (line * kStrips + t) * 64;
          __builtin_prefetch(from + kAhead * kStrips * 64);
          raw[t] = load_ints(from);
        }
        ISOBIT_UNROLL for (int step = 0; step < Dot::kSteps; ++step) {
          Ints value[T];
          ISOBIT_UNROLL for (int t = 0; t < T; ++t) value[t] = Dot::value(raw[t], step);
          ISOBIT_UNROLL for (int m = 0; m < R; ++m) {
            int32_t word;
            memcpy(&word, x + m * stride + (line * Dot::kSteps + step) * 4, 4);
            const Ints q = broadcast(word);
            ISOBIT_UNROLL for (int t = 0; t < T; ++t) sum[m][t] = Dot::dot(value[t], q, sum[m][t]);
          }
        }
      }
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
        const int64_t column = table_index(a, run, strip + t);
        const Lanes scale = load_number(a.scales, a.scale_number, column);
        ISOBIT_UNROLL for (int m = 0; m < R; ++m)
          out[m][t] = to_float(sum[m][t]) * broadcast(a.x_scales[place + m]) * scale;
      }
    }
  }
};

// Pairs of 16-bit products: the bytes k = 0, 2 of a word in one step, k = 1, 3 in the other.
struct Pairs {
  static constexpr int kSteps = 2;
  ISOBIT_INLINE Ints value(Ints line, int step) {
    ISOBIT_PARTS line.part[i] = (line.part[i] >> (8 * step)) & 0x00ff00ff;
    return line;
  }
  ISOBIT_INLINE Ints dot(Ints value, Ints q, Ints sum) {
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
