#include "dispatch.h"

#include <memory>

#include "threads.h"

namespace isobit {
namespace {

struct Set {
  std::string name;
  const Kernels* kernels;
  void (*bf16_linear)(const Linear&);
  void (*vnni_linear)(const Linear&);
};

std::vector<Set> detect() {
  std::vector<Set> sets;
#ifdef ISOBIT_X86
  __builtin_cpu_init();
  const bool with_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("f16c");
  const bool with_avx512 = with_avx2 && __builtin_cpu_supports("avx512f") &&
                           __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  // A machine may have either of BF16 and VNNI without the other.
  const auto vnni = with_avx512 && __builtin_cpu_supports("avx512vnni") ? avx512_vnni::linear_int8
                                                                        : nullptr;
  if (with_avx512 && __builtin_cpu_supports("avx512bf16"))
    sets.push_back({"avx512_bf16", &avx512::kernels, avx512_bf16::linear, vnni});
  if (vnni) sets.push_back({"avx512_vnni", &avx512::kernels, nullptr, vnni});
  if (with_avx512) sets.push_back({"avx512", &avx512::kernels, nullptr, nullptr});
  if (with_avx2) sets.push_back({"avx2", &avx2::kernels, nullptr, nullptr});
#endif
  sets.push_back({"baseline", &baseline::kernels, nullptr, nullptr});
  return sets;
}

const std::vector<Set> sets = detect();
const Set* current = &sets.front();

bool dot_takes(const Linear& job, Number activations) {
  return current->bf16_linear && activations == Number::bfloat16 &&
         (job.kind == Kind::int4 || job.kind == Kind::int8 || job.kind == Kind::bfloat16);
}

void gather_bits(const Gather& a) {
  parallel_for(a.rows, [](const void* context, int64_t row) {
    const Gather& a = *static_cast<const Gather*>(context);
    const uint16_t* x = static_cast<const uint16_t*>(a.x) + row * a.k;
    uint16_t* out = static_cast<uint16_t*>(a.out) + row * a.packed_k;
    for (int64_t i = 0; i < a.packed_k; ++i) out[i] = a.index[i] < 0 ? 0 : x[a.index[i]];
  }, &a);
}

}  // namespace

std::vector<std::string> available_sets() {
  std::vector<std::string> names;
  for (const Set& set : sets) names.push_back(set.name);
  return names;
}

const std::string& current_set() { return current->name; }

bool select_set(const std::string& name) {
  for (const Set& set : sets) {
    if (set.name == name) {
      current = &set;
      return true;
    }
  }
  return false;
}

bool uses_vnni() { return current->vnni_linear; }

const Kernels& kernels() { return *current->kernels; }

void run_linear(Linear job, Gather activations) {
  const bool dot = dot_takes(job, activations.number);
  const bool ready = !activations.index && (dot || activations.number == Number::float32);
  std::unique_ptr<char[]> prepared;
  job.x = activations.x;
  if (!ready) {
    prepared.reset(new char[activations.rows * activations.packed_k * (dot ? 2 : 4)]);
    activations.out = prepared.get();
    dot ? gather_bits(activations) : kernels().widen(activations);
    job.x = prepared.get();
  }
  dot ? current->bf16_linear(job) : kernels().linear(job);
}

void run_linear_int8(Linear job, Gather activations, float input_scale) {
  const bool vnni = uses_vnni();
  const int64_t count = activations.rows * activations.packed_k;
  const int64_t scales = job.segments * activations.rows;
  std::unique_ptr<float[]> gathered;
  if (activations.index) {
    gathered.reset(new float[count]);
    activations.out = gathered.get();
    kernels().widen(activations);
    activations.x = gathered.get();
    activations.number = Number::float32;
  }
  const std::unique_ptr<char[]> codes(new char[count * (vnni ? 1 : 2)]);
  const std::unique_ptr<float[]> x_scales(new float[scales]);
  const std::unique_ptr<int32_t[]> corrections(new int32_t[scales]);
  kernels().quantize({activations.x, activations.number, activations.rows, activations.packed_k,
                      job.run_offsets, job.segment_offsets, job.segments, input_scale,
                      vnni ? Codes::bytes : Codes::pairs, codes.get(), x_scales.get(),
                      corrections.get()});
  job.x = codes.get();
  job.x_scales = x_scales.get();
  job.corrections = corrections.get();
  vnni ? current->vnni_linear(job) : kernels().linear_int8(job);
}

}  // namespace isobit
