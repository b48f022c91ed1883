// Everything that is built once per instruction set.
#include "ops/attention.h"
#include "ops/digest.h"
#include "ops/greatest.h"
#include "linear/fp32.h"
#include "linear/int8.h"
#include "machine/peak.h"
#include "linear/quantize.h"
#include "machine/read.h"
#include "ops/rows.h"

namespace isobit {
namespace ISOBIT_SET {

const Kernels kernels = {linear,   plan_linear<Pairs>, quantize, widen_rows,
                         rms_norm, silu_mul,           rope,     attention,
                         greatest, read,               run_peak<MultiplyAdd>,
                         digest};

}  // namespace ISOBIT_SET
}  // namespace isobit
