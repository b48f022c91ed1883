// Everything that is built once per instruction set.
#include "attention.h"
#include "linear_fp32.h"
#include "rows.h"

namespace isobit {
namespace ISOBIT_SET {

const Kernels kernels = {linear, widen_rows, rms_norm, silu_mul, rope, attention};

}  // namespace ISOBIT_SET
}  // namespace isobit
