// int8 codes of activations against int8 weights: four products of a column in one vpdpbusd.
#include "linear_int8.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

struct Quads {
  static constexpr int kSteps = 1;
  ISOBIT_INLINE Ints value(Ints line, int) { return line; }
  ISOBIT_INLINE Ints dot(Ints value, Ints q, Ints sum) {
    sum.part[0] = (IntPart)_mm512_dpbusd_epi32((__m512i)sum.part[0], (__m512i)value.part[0],
                                               (__m512i)q.part[0]);
    return sum;
  }
};

}  // namespace

void linear_int8(Product& product) { plan_blocks<Exact<Quads>>(product); }

}  // namespace ISOBIT_SET
}  // namespace isobit
