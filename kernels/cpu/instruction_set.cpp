// Everything that is built once per instruction set.
#include "attention.h"
#include "digest.h"
#include "greatest.h"
#include "linear_fp32.h"
#include "linear_int8.h"
#include "peak.h"
#include "quantize.h"
#include "read.h"
#include "rows.h"

namespace isobit {
namespace ISOBIT_SET {

const Kernels kernels = {linear,   plan_linear<Pairs>, quantize, widen_rows,
                         rms_norm, silu_mul,           rope,     attention,
                         greatest, read,               run_peak<MultiplyAdd>,
                         digest};

}  // namespace ISOBIT_SET
}  // namespace isobit
