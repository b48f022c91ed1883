// 16-bit floating point numbers, bit by bit, for machines and compilers without them.
#pragma once

#include <cstdint>
#include <cstring>

namespace isobit {
namespace ISOBIT_SET {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float widen(float value) { return value; }
inline float widen(Bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
inline float widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return float_of(sign | 0x70000000 | rest);
  // 2^112 moves the exponent bias from 15 to 127 and makes half's denormals normal.
  return float_of(sign | bits_of(float_of(rest) * float_of(0x77800000)));
}

// Rounds to the nearest value of T, ties to even.
template <class T>
T narrow(float value);

template <>
inline float narrow<float>(float value) {
  return value;
}
template <>
inline Bf16 narrow<Bf16>(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline Half narrow<Half>(float value) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (size >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < 0x38800000) {
    // Adding 0.5 puts the last place of a denormal half at the end of the fraction.
    const uint32_t sum = bits_of(float_of(size) + 0.5f);
    return {static_cast<uint16_t>(sign | (sum - 0x3f000000))};
  }
  const uint32_t odd = (size >> 13) & 1;
  return {static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + odd) >> 13))};
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
