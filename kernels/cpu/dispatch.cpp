#include "dispatch.h"

#include <cassert>
#include <memory>

#include "machine/threads.h"

namespace isobit {
namespace {

struct Set {
  std::string name;
  const Kernels* kernels;
  void (*bf16_linear)(Product&);
  void (*vnni_linear)(Product&);
  int64_t (*bf16_peak)(const Peak&, int64_t);
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
    sets.push_back({"avx512_bf16", &avx512::kernels, avx512_bf16::linear, vnni, avx512_bf16::peak});
  if (vnni) sets.push_back({"avx512_vnni", &avx512::kernels, nullptr, vnni, nullptr});
  if (with_avx512) sets.push_back({"avx512", &avx512::kernels, nullptr, nullptr, nullptr});
  if (with_avx2) sets.push_back({"avx2", &avx2::kernels, nullptr, nullptr, nullptr});
#endif
  sets.push_back({"baseline", &baseline::kernels, nullptr, nullptr, nullptr});
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

int64_t run_peak(int64_t rounds, int64_t tasks, float* sums) {
  const Peak job = {rounds, sums};
  const auto peak = current->bf16_peak ? current->bf16_peak : kernels().peak;
  return rounds * tasks * peak(job, tasks);
}

namespace {

// Memory of one thread for the length of one call, kept for the next.
class Scratch {
 public:
  void reserve(size_t bytes) {
    if (bytes > size_) memory_.reset(new char[size_ = bytes]);
    used_ = 0;
  }
  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += padded<T>(count);
    assert(used_ <= size_);
    return taken;
  }
  template <class T>
  static size_t padded(int64_t count) {
    return (count * sizeof(T) + 63) / 64 * 64;
  }

 private:
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0, used_ = 0;
};

thread_local Scratch scratch;

enum class Form { ready, bits, widened, codes };

Form form_of(const LinearCall& call) {
  if (call.weight->quantize) return Form::codes;
  const bool dot = dot_takes(call.weight->linear, call.number);
  if (!call.weight->gather && (dot || call.number == Number::float32)) return Form::ready;
  return dot ? Form::bits : Form::widened;
}

size_t scratch_bytes(const LinearCall& call, int64_t rows) {
  const Linear& a = call.weight->linear;
  const int64_t count = rows * a.packed_k;
  switch (form_of(call)) {
    case Form::ready: return 0;
    case Form::bits: return Scratch::padded<uint16_t>(count);
    case Form::widened: return Scratch::padded<float>(count);
    case Form::codes: break;
  }
  return (call.weight->gather ? Scratch::padded<float>(count) : 0) +
         Scratch::padded<uint16_t>(count) + Scratch::padded<float>(a.segments * rows) +
         Scratch::padded<int32_t>(a.segments * rows);
}

void quantize(const LinearCall& call, Gather activations, Linear& a) {
  if (activations.index) {
    activations.out = scratch.take<float>(a.rows * a.packed_k);
    kernels().widen(activations);
    activations.x = activations.out;
    activations.number = Number::float32;
  }
  uint16_t* codes = scratch.take<uint16_t>(a.rows * a.packed_k);
  float* scales = scratch.take<float>(a.segments * a.rows);
  int32_t* corrections = scratch.take<int32_t>(a.segments * a.rows);
  kernels().quantize({activations.x, activations.number, a.rows, a.packed_k, a.run_offsets,
                      a.segment_offsets, a.segments, call.weight->input_scale,
                      uses_vnni() ? Codes::bytes : Codes::pairs, codes, scales, corrections});
  a.x = codes;
  a.x_scales = scales;
  a.corrections = corrections;
}

Product prepare(const LinearCall& call, int64_t rows) {
  Product product = {call.weight->linear};
  Linear& a = product.linear;
  a.x = call.x;
  a.rows = rows;
  a.merges = call.merges;
  a.bias = call.bias;
  a.out = call.out;
  a.out_width = call.out_width;
  Gather activations = {call.x,  call.number,         rows,   call.weight->k, call.weight->gather,
                        a.packed_k, nullptr};
  switch (form_of(call)) {
    case Form::ready: break;
    case Form::bits:
      a.x = activations.out = scratch.take<uint16_t>(rows * a.packed_k);
      gather_bits(activations);
      break;
    case Form::widened:
      a.x = activations.out = scratch.take<float>(rows * a.packed_k);
      kernels().widen(activations);
      break;
    case Form::codes: quantize(call, activations, a);
  }
  if (call.weight->quantize) {
    uses_vnni() ? current->vnni_linear(product) : kernels().linear_int8(product);
  } else {
    dot_takes(a, call.number) ? current->bf16_linear(product) : kernels().linear(product);
  }
  return product;
}

struct Products {
  const Product* first;
  int count;
  bool alike;  // in their units
};

void run_unit(const void* context, int64_t unit) {
  const Products& products = *static_cast<const Products*>(context);
  const Product* product = products.first;
  if (products.alike) {
    // A thread begins with its share of every product, so that gate and up of a column end in one
    // cache; it reads one weight after the other, since both at once would be two streams.
    const int64_t units = product->units, parts = threads();
    // The last part that begins at or before the unit.
    const int64_t part = ((unit / products.count + 1) * parts - 1) / units;
    const int64_t begin = units * part / parts, size = units * (part + 1) / parts - begin;
    unit -= begin * products.count;
    product += unit / size;
    unit = begin + unit % size;
  } else {
    for (; unit >= product->units; ++product) unit -= product->units;
  }
  product->task(&product->linear, unit);
}

}  // namespace

void run_linears(const LinearCall* calls, int count, int64_t rows) {
  assert(count <= kMostTogether);
  size_t bytes = 0;
  for (int i = 0; i < count; ++i) bytes += scratch_bytes(calls[i], rows);
  scratch.reserve(bytes);
  Product products[kMostTogether];
  int64_t units = 0;
  bool alike = true;
  for (int i = 0; i < count; ++i) {
    products[i] = prepare(calls[i], rows);
    units += products[i].units;
    alike = alike && products[i].units == products[0].units;
  }
  const Products all = {products, count, alike};
  parallel_for(units, run_unit, &all);
}

}  // namespace isobit
