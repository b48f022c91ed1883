// int8 codes of activations against int8 weights: four products of a column in one vpdpbusd.
#include "linear/int8.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

struct Quads : Exact {
  static constexpr int kSteps = 1;
  ISOBIT_INLINE Ints value(Ints line, int, Zero) { return line; }
  ISOBIT_INLINE Ints dot(Ints value, int32_t x, Ints sum) {
    sum.part[0] = (IntPart)_mm512_dpbusd_epi32((__m512i)sum.part[0], (__m512i)value.part[0],
                                               _mm512_set1_epi32(x));
    return sum;
  }
};

}  // namespace

void linear_int8(Product& product) { plan_linear<Quads>(product); }

}  // namespace ISOBIT_SET
}  // namespace isobit
