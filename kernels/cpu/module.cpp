// The Python face. Pointers arrive as integers; ops.py has checked what they point at.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings.h"
#include "chunks.h"
#include "threads.h"

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

template <class T>
int64_t first_outside(Address values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = at<const T>(values)[i];
    if (value < 0 || value >= limit) return i;
  }
  return -1;
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

// The first of five lists of a step that holds an index outside of its limits, and where; 5 and the
// first row without its pages; or -1.
std::pair<int, int64_t> step_outside(Address tokens, Address positions, Address slots,
                                     Address sequence, Address sampled, Address block_tables,
                                     int64_t rows, int64_t sampled_rows, int64_t sequences,
                                     int64_t max_pages, int64_t vocabulary, int64_t last,
                                     int64_t pages) {
  const int64_t where[] = {first_outside<int64_t>(tokens, rows, vocabulary),
                           first_outside<int32_t>(positions, rows, last),
                           first_outside<int64_t>(slots, rows, pages * kPage),
                           first_outside<int32_t>(sequence, rows, sequences),
                           first_outside<int64_t>(sampled, sampled_rows, rows)};
  for (int list = 0; list < 5; ++list) {
    if (where[list] >= 0) return {list, where[list]};
  }
  const int64_t row =
      first_without_page(block_tables, max_pages, sequence, positions, rows, 0, pages);
  return {row < 0 ? -1 : 5, row};
}

// Writes the tensors of a step. A row whose page is missing gets slot -1; tables are filled up with
// page 0.
void fill_step(const std::vector<Address>& to, int64_t width, const std::vector<int64_t>& tokens,
               const std::vector<int32_t>& positions, const std::vector<int32_t>& sequence,
               const std::vector<std::vector<int32_t>>& tables,
               const std::vector<int64_t>& sampled) {
  std::copy(tokens.begin(), tokens.end(), at<int64_t>(to.at(0)));
  std::copy(positions.begin(), positions.end(), at<int32_t>(to.at(1)));
  for (size_t row = 0; row < tokens.size(); ++row) {
    const auto& table = tables.at(sequence.at(row));
    const size_t page = positions.at(row) / kPage;
    at<int64_t>(to.at(2))[row] =
        page < table.size() ? int64_t{table[page]} * kPage + positions[row] % kPage : -1;
  }
  std::copy(sequence.begin(), sequence.end(), at<int32_t>(to.at(3)));
  std::copy(sampled.begin(), sampled.end(), at<int64_t>(to.at(4)));
  int32_t* table = at<int32_t>(to.at(5));
  for (const auto& pages : tables) {
    std::fill(std::copy(pages.begin(), pages.end(), table), table + width, 0);
    table += width;
  }
}

struct Outcome {
  const std::vector<Address>& tensors;
  const std::vector<int64_t>& bytes;
  const float* rows;
  int64_t width;
  std::vector<int64_t> greatest;
  std::vector<uint64_t> digests;
};

// The longest tasks first: rows, then tensors, then what is short for every row.
void outcome_task(const void* context, int64_t task) {
  auto& a = *static_cast<Outcome*>(const_cast<void*>(context));
  const int64_t rows = static_cast<int64_t>(a.greatest.size());
  const int64_t tensors = static_cast<int64_t>(a.tensors.size());
  const int64_t digests = static_cast<int64_t>(a.digests.size());
  if (task >= digests) {
    const int64_t row = task - digests;
    kernels().greatest({a.rows + row * a.width, 1, a.width, &a.greatest[row]});
  } else if (task < rows) {
    const int64_t bytes = a.width * static_cast<int64_t>(sizeof(float));
    a.digests[tensors + task] = kernels().digest(a.rows + task * a.width, bytes, 0);
  } else {
    const int64_t tensor = task - rows;
    a.digests[tensor] = kernels().digest(at(a.tensors[tensor]), a.bytes[tensor], 0);
  }
}

// The greatest of each row of a matrix, and digests of tensors and then of those rows.
std::pair<std::vector<int64_t>, std::vector<uint64_t>> outcome(
    const std::vector<Address>& tensors, const std::vector<int64_t>& bytes, Address rows,
    int64_t count, int64_t width, bool digests) {
  Outcome a = {tensors, bytes, at<const float>(rows), width, std::vector<int64_t>(count), {}};
  if (digests) a.digests.resize(tensors.size() + count);
  parallel_for(count + static_cast<int64_t>(a.digests.size()), outcome_task, &a);
  return {std::move(a.greatest), std::move(a.digests)};
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
  m.def("step_outside", step_outside);
  m.def("fill_step", fill_step);
  m.def("outcome", outcome, free);
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
