// The Python face. Pointers arrive as integers; ops.py has checked what they point at.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "machine/chunks.h"
#include "machine/threads.h"

namespace nb = nanobind;

namespace isobit {
namespace {

Weight weight(int kind, Address data, Address scales, int scale_number, Address zeros, int64_t runs,
              int64_t n, int64_t k, int64_t packed_k, Address run_offsets, Address segment_offsets,
              int64_t segments, Address gather, bool quantize, float input_scale) {
  Linear linear = {};
  linear.packed_k = packed_k;
  linear.kind = static_cast<Kind>(kind);
  linear.data = at<const unsigned char>(data);
  linear.scales = at(scales);
  linear.scale_number = static_cast<Number>(scale_number);
  linear.zeros = at<const uint8_t>(zeros);
  linear.runs = runs;
  linear.n = n;
  linear.run_offsets = at<const int32_t>(run_offsets);
  linear.segment_offsets = at<const int32_t>(segment_offsets);
  linear.segments = segments;
  return {linear, k, at<const int32_t>(gather), quantize, input_scale};
}

void linear(const Weight& weight, Address x, int number, int64_t rows, Address merges,
            Address out) {
  const LinearCall call = {&weight, at(x), static_cast<Number>(number), at<const int32_t>(merges),
                           nullptr, at<float>(out), weight.linear.n};
  run_linears(&call, 1, rows);
}

void rms_norm(Address x, Address add, Address bias, Address weight, int weight_number, float eps,
              int64_t rows, int64_t width, Address out, int out_number) {
  kernels().rms_norm({at<float>(x), at<float>(add), at<const float>(bias), at(weight),
                      static_cast<Number>(weight_number), eps, rows, width, at(out),
                      static_cast<Number>(out_number)});
}

void silu_mul(Address gate, Address up, int64_t rows, int64_t width, Address out, int out_number) {
  kernels().silu_mul({at<const float>(gate), at<const float>(up), rows, width, at(out),
                      static_cast<Number>(out_number)});
}

void rope_and_cache(Address q, Address k, Address v, Address cos, Address sin, Address positions,
                    Address slots, Address q_norm, Address k_norm, int norm_number, float eps,
                    int64_t rows, int64_t q_heads, int64_t kv_heads, int64_t head, Address keys,
                    Address values, Address out, int number) {
  kernels().rope({at<const float>(q), at<const float>(k), at<const float>(v), at<const float>(cos),
                  at<const float>(sin), at<const int32_t>(positions), at<const int64_t>(slots),
                  at(q_norm), at(k_norm), static_cast<Number>(norm_number), eps, rows, q_heads,
                  kv_heads, head, at(keys), at(values), at(out), static_cast<Number>(number)});
}

void attention(Address q, Address keys, Address values, int number, Address block_tables,
               int64_t max_pages, Address row_sequence, Address positions, Address head_to_kv,
               float scale, int64_t window, int64_t rows, int64_t q_heads, int64_t kv_heads,
               int64_t head, Address out) {
  const int64_t shared = (q_heads + kv_heads - 1) / kv_heads;
  const auto chunks = chunks_of(at<const int32_t>(row_sequence), rows, shared);
  kernels().attention({at(q), at(keys), at(values), static_cast<Number>(number),
                       at<const int32_t>(block_tables), max_pages, at<const int32_t>(row_sequence),
                       at<const int32_t>(positions), at<const int32_t>(head_to_kv), scale, window,
                       rows, q_heads, kv_heads, head, chunks.data(),
                       static_cast<int64_t>(chunks.size()) - 1, at(out)});
}

std::vector<int64_t> greatest(Address x, int64_t rows, int64_t width) {
  std::vector<int64_t> index(rows);
  kernels().greatest({at<const float>(x), rows, width, index.data()});
  return index;
}

// The sum of all 32-bit words, modulo 2^32.
uint32_t read_memory(Address from, int64_t bytes) {
  std::vector<uint32_t> sums(bytes / kReadUnit);
  kernels().read({at(from), bytes, sums.data()});
  uint32_t total = 0;
  for (uint32_t sum : sums) total += sum;
  return total;
}

int64_t peak(int64_t rounds, int64_t tasks) {
  std::vector<float> sums(tasks);
  return run_peak(rounds, tasks, sums.data());
}

}  // namespace
}  // namespace isobit

NB_MODULE(_cpu, m) {
  using namespace isobit;
  const auto free = nb::call_guard<nb::gil_scoped_release>();
  const auto timed = nb::call_guard<nb::gil_scoped_release, Timed>();
  nb::class_<Weight>(m, "Weight");
  m.def("weight", weight);
  m.def("linear", linear, timed);
  m.def("rms_norm", rms_norm, timed);
  m.def("silu_mul", silu_mul, timed);
  m.def("rope_and_cache", rope_and_cache, timed);
  m.def("attention", attention, timed);
  m.def("greatest", greatest, free);
  m.def("peak", peak, free);
  m.def("read_memory", read_memory, free);
  m.attr("read_unit") = kReadUnit;
  m.attr("tile") = kTile;
  m.def("busy_ns", [] { return busy_ns.load(); });
  m.def("external_ns", [] { return external_ns.load(); });
  m.def("digest", [](Address data, int64_t bytes, uint64_t seed) {
    return kernels().digest(at(data), bytes, seed);
  }, free);
  bind_program(m);
  bind_pack(m);
  bind_steps(m);
  m.def("isa", [] { return current_set(); });
  m.def("available_isas", available_sets);
  m.def("set_isa", select_set);
  m.def("uses_vnni", uses_vnni);
  m.def("set_threads", set_threads, free);
  m.def("threads", threads);
}
