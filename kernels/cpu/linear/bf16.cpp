// bf16 activations against weights that bf16 holds exactly: pairs of k through vdpbf16ps.
#include "linear/block.h"
#include "machine/peak.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

struct Bf16Dot : Summed {
  using X = uint32_t;
  using Line = __m512i;
  using Value = __m512i;
  static constexpr int kBytes = 64;
  static constexpr bool kDear = false;
  template <class Zero>
  ISOBIT_INLINE __m512i load(const unsigned char* from, Zero) { return _mm512_loadu_si512(from); }
  ISOBIT_INLINE Lanes dot(__m512i value, uint32_t x, Lanes sum) {
    sum.part[0] = _mm512_dpbf16_ps(sum.part[0], (__m512bh)value, (__m512bh)_mm512_set1_epi32(x));
    return sum;
  }
};

struct NoZero {};

struct DotPeak {
  static constexpr int kOperations = 4;
  ISOBIT_INLINE Lanes step(Lanes sum) {
    return Bf16Dot::dot(_mm512_set1_epi32(0x3f003f00), 0x3f003f00, sum);
  }
};

// (0..15) - 8, twice: an index keeps a bit of the next nibble, and the repetition ignores it.
alignas(64) const uint16_t kSigned[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

struct Int4 : Bf16Dot {
  using Zero = NoZero;
  static constexpr int kLineK = 8, kSteps = 4;
  ISOBIT_INLINE NoZero zero(const Linear&, int64_t, int64_t) { return {}; }
  ISOBIT_INLINE __m512i value(__m512i line, int step, NoZero) {
    const __m512i index = _mm512_srli_epi32(line, 4 * step);
    return _mm512_permutexvar_epi16(index, _mm512_load_si512(kSigned));
  }
};

// -16..15: every code minus every zero point from 0 to 16 (GPTQ files can store 15 + 1).
alignas(64) const uint16_t kDifference[32] = {
    0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130, 0xc120, 0xc110,
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
    0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};

// Bytes of two nibbles apart, 16 - zero added to each; a lookup takes the lowest five bits of 16.
struct Int4Zero : Bf16Dot {
  using Zero = __m512i;
  struct Line { __m512i even, odd; };
  static constexpr int kLineK = 8, kSteps = 4;
  static constexpr bool kDear = true;
  ISOBIT_INLINE __m512i zero(const Linear& a, int64_t run, int64_t tile) {
    const Ints zeros = load_bytes(a.zeros + table_index(a, run, tile));
    const __m512i shift = _mm512_sub_epi32(_mm512_set1_epi32(16), (__m512i)zeros.part[0]);
    return _mm512_mullo_epi32(shift, _mm512_set1_epi32(0x01010101));
  }
  ISOBIT_INLINE Line load(const unsigned char* from, __m512i zero) {
    const __m512i line = _mm512_loadu_si512(from), low = _mm512_set1_epi8(15);
    return {_mm512_add_epi8(_mm512_and_si512(line, low), zero),
            _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi32(line, 4), low), zero)};
  }
  ISOBIT_INLINE __m512i value(Line line, int step, __m512i) {
    const __m512i bytes = step % 2 ? line.odd : line.even;
    const __m512i index = step < 2 ? bytes : _mm512_srli_epi16(bytes, 8);
    return _mm512_permutexvar_epi16(index, _mm512_load_si512(kDifference));
  }
};

struct Int8 : Bf16Dot {
  using Zero = __m512i;
  static constexpr int kLineK = 4, kSteps = 2;
  static constexpr bool kDear = true;
  ISOBIT_INLINE __m512i zero(const Linear& a, int64_t run, int64_t tile) {
    if (!a.zeros) return _mm512_set1_epi32(128);
    return (__m512i)load_bytes(a.zeros + table_index(a, run, tile)).part[0];
  }
  ISOBIT_INLINE __m512i exact(__m512i line, int shift, __m512i zero) {
    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(line, shift), _mm512_set1_epi32(255));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, zero)));
  }
  ISOBIT_INLINE __m512i value(__m512i line, int step, __m512i zero) {
    const __m512i low = exact(line, 16 * step, zero);
    const __m512i high = exact(line, 16 * step + 8, zero);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high);
  }
};

struct Dense : Bf16Dot {
  using Zero = NoZero;
  static constexpr int kLineK = 2, kSteps = 1;
  ISOBIT_INLINE NoZero zero(const Linear&, int64_t, int64_t) { return {}; }
  ISOBIT_INLINE __m512i value(__m512i line, int, NoZero) { return line; }
};

}  // namespace

void linear(Product& product) {
  const Linear& a = product.linear;
  if (a.kind == Kind::int4 && a.zeros) return plan_linear<Int4Zero>(product);
  if (a.kind == Kind::int4) return plan_linear<Int4>(product);
  if (a.kind == Kind::int8) return plan_linear<Int8>(product);
  plan_linear<Dense>(product);
}

int64_t peak(const Peak& a, int64_t tasks) { return run_peak<DotPeak>(a, tasks); }

}  // namespace ISOBIT_SET
}  // namespace isobit
