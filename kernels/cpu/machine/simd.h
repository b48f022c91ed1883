// Sixteen fp32 lanes, whatever the width of the machine's registers: the order of additions is then
// the same for every instruction set, and only fused or separate rounding tells them apart.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "machine/number.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

#define ISOBIT_INLINE static inline __attribute__((always_inline))
#define ISOBIT_PARTS _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i)

typedef float Part __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntPart __attribute__((vector_size(4 * kWidth)));
typedef uint32_t BitPart __attribute__((vector_size(4 * kWidth)));
typedef uint16_t ShortPart __attribute__((vector_size(2 * kWidth)));
typedef uint8_t BytePart __attribute__((vector_size(kWidth)));

struct Lanes {
  Part part[kParts];
};
struct Ints {
  IntPart part[kParts];
};

ISOBIT_INLINE Part fma_part(Part a, Part b, Part c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__FP_FAST_FMAF)
  for (int i = 0; i < kWidth; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

ISOBIT_INLINE Lanes broadcast(float value) {
  Lanes r;
  ISOBIT_PARTS r.part[i] = Part{} + value;
  return r;
}
ISOBIT_INLINE Ints broadcast(int32_t value) {
  Ints r;
  ISOBIT_PARTS r.part[i] = IntPart{} + value;
  return r;
}
ISOBIT_INLINE Lanes zero() {
  Lanes r;
  ISOBIT_PARTS r.part[i] = Part{};
  return r;
}
ISOBIT_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  ISOBIT_PARTS c.part[i] = fma_part(a.part[i], b.part[i], c.part[i]);
  return c;
}
ISOBIT_INLINE Lanes operator+(Lanes a, Lanes b) {
  ISOBIT_PARTS a.part[i] += b.part[i];
  return a;
}
ISOBIT_INLINE Lanes operator-(Lanes a, Lanes b) {
  ISOBIT_PARTS a.part[i] -= b.part[i];
  return a;
}
ISOBIT_INLINE Lanes operator*(Lanes a, Lanes b) {
  ISOBIT_PARTS a.part[i] *= b.part[i];
  return a;
}
ISOBIT_INLINE Lanes operator/(Lanes a, Lanes b) {
  ISOBIT_PARTS a.part[i] /= b.part[i];
  return a;
}
ISOBIT_INLINE Ints operator>(Lanes a, Lanes b) {
  Ints r;
  ISOBIT_PARTS r.part[i] = a.part[i] > b.part[i];
  return r;
}
ISOBIT_INLINE Lanes select(Ints mask, Lanes yes, Lanes no) {
  ISOBIT_PARTS no.part[i] = mask.part[i] ? yes.part[i] : no.part[i];
  return no;
}
ISOBIT_INLINE Lanes to_float(Ints a) {
  Lanes r;
  ISOBIT_PARTS r.part[i] = __builtin_convertvector(a.part[i], Part);
  return r;
}
ISOBIT_INLINE Lanes from_bits(Ints a) {
  Lanes r;
  ISOBIT_PARTS r.part[i] = (Part)a.part[i];
  return r;
}
ISOBIT_INLINE Ints load_ints(const void* from) {
  Ints r;
  ISOBIT_PARTS memcpy(&r.part[i], static_cast<const int32_t*>(from) + i * kWidth, 4 * kWidth);
  return r;
}
// GCC 12 widens and narrows vectors in halves when left to itself.
ISOBIT_INLINE BitPart widened(BytePart bytes) {
#if defined(__AVX512F__)
  return (BitPart)_mm512_cvtepu8_epi32((__m128i)bytes);
#else
  return __builtin_convertvector(bytes, BitPart);
#endif
}
ISOBIT_INLINE BitPart widened(ShortPart half) {
#if defined(__AVX512F__)
  return (BitPart)_mm512_cvtepu16_epi32((__m256i)half);
#elif defined(__AVX2__)
  return (BitPart)_mm256_cvtepu16_epi32((__m128i)half);
#else
  return __builtin_convertvector(half, BitPart);
#endif
}
ISOBIT_INLINE ShortPart narrowed(BitPart bits) {
#if defined(__AVX512F__)
  return (ShortPart)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, ShortPart);
#endif
}

ISOBIT_INLINE Ints load_bytes(const uint8_t* from) {
  Ints r;
  ISOBIT_PARTS {
    BytePart bytes;
    memcpy(&bytes, from + i * kWidth, kWidth);
    r.part[i] = (IntPart)widened(bytes);
  }
  return r;
}

ISOBIT_INLINE Lanes load(const float* from) {
  Lanes r;
  ISOBIT_PARTS memcpy(&r.part[i], from + i * kWidth, 4 * kWidth);
  return r;
}
ISOBIT_INLINE Lanes load(const Bf16* from) {
  Lanes r;
  ISOBIT_PARTS {
    ShortPart half;
    memcpy(&half, from + i * kWidth, 2 * kWidth);
    r.part[i] = (Part)(widened(half) << 16);
  }
  return r;
}
ISOBIT_INLINE Lanes load(const Half* from) {
  Lanes r;
#if defined(__AVX512F__)
  r.part[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  ISOBIT_PARTS r.part[i] =
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * kWidth)));
#else
  for (int i = 0; i < kLanes; ++i) r.part[i / kWidth][i % kWidth] = widen(from[i]);
#endif
  return r;
}

ISOBIT_INLINE void store(float* to, Lanes a) {
  ISOBIT_PARTS memcpy(to + i * kWidth, &a.part[i], 4 * kWidth);
}
ISOBIT_INLINE void store(int32_t* to, Ints a) {
  ISOBIT_PARTS memcpy(to + i * kWidth, &a.part[i], 4 * kWidth);
}
ISOBIT_INLINE void store(Bf16* to, Lanes a) {
  ISOBIT_PARTS {
    const BitPart bits = (BitPart)a.part[i];
    const BitPart nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const BitPart nan = (bits >> 16) | 0x40;
    const ShortPart half = narrowed(a.part[i] != a.part[i] ? nan : nearest);
    memcpy(to + i * kWidth, &half, 2 * kWidth);
  }
}
ISOBIT_INLINE void store(Half* to, Lanes a) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(a.part[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  ISOBIT_PARTS _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * kWidth),
                                _mm256_cvtps_ph(a.part[i], _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = narrow<Half>(a.part[i / kWidth][i % kWidth]);
#endif
}

// A tail goes through the same instructions as a full vector: its lanes must not round differently.
template <class T>
ISOBIT_INLINE Lanes load_some(const T* from, int64_t count) {
  T padded[kLanes] = {};
  memcpy(padded, from, count * sizeof(T));
  return load(padded);
}
template <class T>
ISOBIT_INLINE void store_some(T* to, Lanes a, int64_t count) {
  T padded[kLanes];
  store(padded, a);
  memcpy(to, padded, count * sizeof(T));
}

template <class T>
ISOBIT_INLINE Lanes load_at(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_some(from, count);
}
template <class T>
ISOBIT_INLINE void store_at(T* to, Lanes a, int64_t count) {
  count == kLanes ? store(to, a) : store_some(to, a, count);
}

template <class Op>
ISOBIT_INLINE float across(Lanes a, Op op) {
  float lane[kLanes];
  store(lane, a);
  for (int step = kLanes / 2; step; step /= 2) {
    for (int i = 0; i < step; ++i) lane[i] = op(lane[i], lane[i + step]);
  }
  return lane[0];
}
ISOBIT_INLINE float sum(Lanes a) {
  return across(a, [](float x, float y) { return x + y; });
}
ISOBIT_INLINE float largest(Lanes a) {
  return across(a, [](float x, float y) { return x > y ? x : y; });
}

// exp within 2 ulp, the same in every lane. Two factors of two's powers let results fade through
// the denormals to zero and overflow to infinity without a branch.
ISOBIT_INLINE Lanes exp(Lanes x) {
  x = select(broadcast(-104.f) > x, broadcast(-104.f), x);
  x = select(x > broadcast(89.f), broadcast(89.f), x);
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer
  const Lanes shifted = fma(x, broadcast(1.44269504f), broadcast(kRound));
  const Lanes n = shifted - broadcast(kRound);
  Lanes r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Lanes p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r) + broadcast(1.f);
  ISOBIT_PARTS {
    const IntPart power = (IntPart)shifted.part[i] - 0x4b400000;
    const IntPart first = power >> 1;
    p.part[i] *= (Part)((first + 127) << 23);
    p.part[i] *= (Part)((power - first + 127) << 23);
  }
  return p;
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
