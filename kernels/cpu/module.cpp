// The Python face. Pointers arrive as integers; ops.py has checked what they point at.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>

#include "dispatch.h"
#include "threads.h"

namespace nb = nanobind;

namespace isobit {
namespace {

using Address = uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

std::atomic<int64_t> busy_ns{0};

// Adds the time of one call to busy_ns.
struct Timed {
  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
  ~Timed() {
    const auto spent = std::chrono::steady_clock::now() - begin;
    busy_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
  }
};

void linear(Address x, int number, int64_t rows, int64_t k, int kind, Address data, Address scales,
            int scale_number, Address zeros, int64_t runs, int64_t n, int64_t tiles, int64_t packed_k,
            Address run_offsets, Address segment_offsets, int64_t segments, Address gather,
            bool quantize, float input_scale, Address out) {
  const Linear job = {nullptr, rows, packed_k, static_cast<Kind>(kind),
                      at<const unsigned char>(data), at(scales), static_cast<Number>(scale_number),
                      at<const uint8_t>(zeros), runs, n, tiles, at<const int32_t>(run_offsets),
                      at<const int32_t>(segment_offsets), segments, at<float>(out)};
  const Gather activations = {at(x), static_cast<Number>(number), rows, k,
                              at<const int32_t>(gather), packed_k, nullptr};
  quantize ? run_linear_int8(job, activations, input_scale) : run_linear(job, activations);
}

void rms_norm(Address x, Address weight, int weight_number, float eps, int64_t rows, int64_t width,
              Address out, int out_number) {
  kernels().rms_norm({at<const float>(x), at(weight), static_cast<Number>(weight_number), eps, rows,
                      width, at(out), static_cast<Number>(out_number)});
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

// Rows of one sequence that stand together share the reading of its keys; a chunk holds few enough
// of them that the queries of one KV head walk as one block.
std::vector<int64_t> chunks_of(const int32_t* sequence, int64_t rows, int64_t heads_per_kv) {
  const int64_t most = heads_per_kv < 16 ? 16 / heads_per_kv : 1;
  std::vector<int64_t> chunks = {0};
  for (int64_t row = 1; row <= rows; ++row) {
    if (row == rows || sequence[row] != sequence[row - 1] || row - chunks.back() == most)
      chunks.push_back(row);
  }
  return chunks;
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

template <class T>
int64_t first_outside(Address values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = at<const T>(values)[i];
    if (value < 0 || value >= limit) return i;
  }
  return -1;
}

// The first row whose position needs a page that its table lacks, or -1.
int64_t first_without_page(Address block_tables, int64_t max_pages, Address row_sequence,
                           Address positions, int64_t rows, int64_t window, int64_t pages) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t position = at<const int32_t>(positions)[row];
    const int64_t begin = window && position >= window ? position - window + 1 : 0;
    const int32_t* table =
        at<const int32_t>(block_tables) + at<const int32_t>(row_sequence)[row] * max_pages;
    if (position < 0 || position / kPage >= max_pages) return row;
    for (int64_t page = begin / kPage; page <= position / kPage; ++page) {
      if (table[page] < 0 || table[page] >= pages) return row;
    }
  }
  return -1;
}

}  // namespace
}  // namespace isobit

NB_MODULE(_cpu, m) {
  using namespace isobit;
  const auto free = nb::call_guard<nb::gil_scoped_release>();
  const auto timed = nb::call_guard<nb::gil_scoped_release, Timed>();
  m.def("linear", linear, timed);
  m.def("rms_norm", rms_norm, timed);
  m.def("silu_mul", silu_mul, timed);
  m.def("rope_and_cache", rope_and_cache, timed);
  m.def("attention", attention, timed);
  m.def("busy_ns", [] { return busy_ns.load(); });
  m.def("first_outside32", first_outside<int32_t>);
  m.def("first_outside64", first_outside<int64_t>);
  m.def("first_without_page", first_without_page);
  m.def("isa", [] { return current_set(); });
  m.def("available_isas", available_sets);
  m.def("set_isa", select_set);
  m.def("uses_vnni", uses_vnni);
  m.def("set_threads", set_threads, free);
  m.def("threads", threads);
}
