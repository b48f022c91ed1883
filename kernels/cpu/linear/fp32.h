// Weights and activations as fp32: one fused multiply-add per weight, k in order.
#pragma once

#include "linear/block.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

struct Fp32Dot : Summed {
  using X = float;
  using Value = Lanes;
  static constexpr int kBytes = 64;
  static constexpr bool kDear = false;
  ISOBIT_INLINE Lanes dot(Lanes value, float x, Lanes sum) { return fma(broadcast(x), value, sum); }
};

template <int kMiddle>
struct Integers : Fp32Dot {
  static constexpr bool kDear = true;
  using Line = Ints;
  using Zero = Ints;
  ISOBIT_INLINE Ints load(const unsigned char* from, Ints) { return load_ints(from); }
  ISOBIT_INLINE Ints zero(const Linear& a, int64_t run, int64_t tile) {
    if (a.zeros) return load_bytes(a.zeros + table_index(a, run, tile));
    Ints r;
    ISOBIT_PARTS r.part[i] = IntPart{} + kMiddle;
    return r;
  }
  ISOBIT_INLINE Lanes code(Ints line, int shift, int mask, Ints zero) {
    ISOBIT_PARTS line.part[i] = ((line.part[i] >> shift) & mask) - zero.part[i];
    return to_float(line);
  }
};

struct Int4Fp32 : Integers<8> {
  static constexpr int kLineK = 8, kSteps = 8;
  ISOBIT_INLINE Lanes value(Ints line, int step, Ints zero) {
    return code(line, step / 2 * 4 + step % 2 * 16, 15, zero);
  }
};

struct Int8Fp32 : Integers<128> {
  static constexpr int kLineK = 4, kSteps = 4;
  ISOBIT_INLINE Lanes value(Ints line, int step, Ints zero) {
    return code(line, step * 8, 255, zero);
  }
};

struct NoZero {};

struct Bf16Fp32 : Fp32Dot {
  using Line = Ints;
  using Zero = NoZero;
  static constexpr int kLineK = 2, kSteps = 2;
  ISOBIT_INLINE Ints load(const unsigned char* from, NoZero) { return load_ints(from); }
  ISOBIT_INLINE NoZero zero(const Linear&, int64_t, int64_t) { return {}; }
  ISOBIT_INLINE Lanes value(Ints line, int step, NoZero) {
    ISOBIT_PARTS line.part[i] = step ? line.part[i] & ~0xffff : line.part[i] << 16;
    return from_bits(line);
  }
};

template <class T>
struct FloatFp32 : Fp32Dot {
  using Line = Lanes;
  using Zero = NoZero;
  static constexpr int kLineK = 1, kSteps = 1, kBytes = kLanes * sizeof(T);
  ISOBIT_INLINE Lanes load(const unsigned char* from, NoZero) {
    return ISOBIT_SET::load(reinterpret_cast<const T*>(from));
  }
  ISOBIT_INLINE NoZero zero(const Linear&, int64_t, int64_t) { return {}; }
  ISOBIT_INLINE Lanes value(Lanes line, int, NoZero) { return line; }
};

void linear(Product& product) {
  switch (product.linear.kind) {
    case Kind::int4: return plan_linear<Int4Fp32>(product);
    case Kind::int8: return plan_linear<Int8Fp32>(product);
    case Kind::bfloat16: return plan_linear<Bf16Fp32>(product);
    case Kind::float16: return plan_linear<FloatFp32<Half>>(product);
    case Kind::float32: return plan_linear<FloatFp32<float>>(product);
  }
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
