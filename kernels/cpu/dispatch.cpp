#include "dispatch.h"

#include <memory>

#include "threads.h"

namespace isobit {
namespace {

struct Set {
  std::string name;
  const Kernels* kernels;
  void (*bf16_linear)(const Linear&);
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
  if (with_avx512 && __builtin_cpu_supports("avx512bf16"))
    sets.push_back({"avx512_bf16", &avx512::kernels, avx512_bf16::linear});
  if (with_avx512) sets.push_back({"avx512", &avx512::kernels, nullptr});
  if (with_avx2) sets.push_back({"avx2", &avx2::kernels, nullptr});
#endif
  sets.push_back({"baseline", &baseline::kernels, nullptr});
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

}  // namespace isobit
