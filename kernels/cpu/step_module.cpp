// Binding of what lies between two runs of a program: checking and writing the lists of a step, and
// reading what came of it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>

#include "bindings.h"
#include "threads.h"

namespace nb = nanobind;

namespace isobit {
namespace {

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

// Where to read the outcome of a step: tensors, and a matrix of logits.
struct Outcome {
  std::vector<Address> tensors;
  std::vector<int64_t> bytes;
  const float* logits;
  int64_t rows, width;

  Outcome(std::vector<Address> tensors, std::vector<int64_t> bytes, Address logits, int64_t rows,
          int64_t width)
      : tensors(std::move(tensors)),
        bytes(std::move(bytes)),
        logits(at<const float>(logits)),
        rows(rows),
        width(width) {}
};

struct Found {
  const Outcome& of;
  std::vector<int64_t> greatest;
  std::vector<uint64_t> digests;
};

// The longest tasks first: rows, then tensors, then what is short for every row.
void find(const void* context, int64_t task) {
  auto& found = *static_cast<Found*>(const_cast<void*>(context));
  const Outcome& a = found.of;
  const int64_t digests = static_cast<int64_t>(found.digests.size());
  if (task >= digests) {
    const int64_t row = task - digests;
    kernels().greatest({a.logits + row * a.width, 1, a.width, &found.greatest[row]});
  } else if (task < a.rows) {
    const int64_t bytes = a.width * static_cast<int64_t>(sizeof(float));
    found.digests[a.tensors.size() + task] = kernels().digest(a.logits + task * a.width, bytes, 0);
  } else {
    const int64_t tensor = task - a.rows;
    found.digests[tensor] = kernels().digest(at(a.tensors[tensor]), a.bytes[tensor], 0);
  }
}

using Read = std::pair<std::vector<int64_t>, std::vector<uint64_t>>;

// The greatest of each row of logits, and digests of tensors and then of those rows.
Read read_outcome(const Outcome& a, bool digests) {
  Found found = {a, std::vector<int64_t>(a.rows), {}};
  if (digests) found.digests.resize(a.tensors.size() + a.rows);
  parallel_for(a.rows + static_cast<int64_t>(found.digests.size()), find, &found);
  return {std::move(found.greatest), std::move(found.digests)};
}

// Greatest and digests of a step, nanoseconds in kernels and in external ops.
using Decoded = std::tuple<std::vector<int64_t>, std::vector<uint64_t>, int64_t, int64_t>;

// Runs a step again and again whose rows are all sampled: before each run every row takes its
// token, which is then the greatest of its logits, and moves on by one position. Rows have pages
// for `ends` positions. Ends early where a step reaches outside, with -2, or an op fails, with its
// number.
std::pair<std::vector<Decoded>, int64_t> decode(Program& p, int64_t ops, int64_t count,
                                                std::vector<int64_t> next,
                                                const std::vector<int64_t>& ends,
                                                const std::vector<Address>& memory,
                                                int64_t vocabulary, int64_t last, int64_t pages,
                                                const Outcome& outcome, bool digests) {
  const int64_t rows = static_cast<int64_t>(next.size());
  auto* tokens = at<int64_t>(memory.at(0));
  auto* positions = at<int32_t>(memory.at(1));
  auto* slots = at<int64_t>(memory.at(2));
  const auto* sequence = at<const int32_t>(memory.at(3));
  const auto* tables = at<const int32_t>(memory.at(5));
  const auto sequences = static_cast<int64_t>(memory.at(8));
  const auto width = static_cast<int64_t>(memory.at(9));
  std::vector<Decoded> made;
  while (static_cast<int64_t>(made.size()) < count) {
    for (int64_t row = 0; row < rows; ++row) {
      tokens[row] = std::max<int64_t>(next[row], 0);
      const int64_t position = ++positions[row];
      const int64_t page = position / kPage;
      slots[row] = position < ends.at(row) && page < width
                       ? tables[sequence[row] * width + page] * kPage + position % kPage
                       : -1;
    }
    const auto outside = step_outside(memory.at(0), memory.at(1), memory.at(2), memory.at(3),
                                      memory.at(4), memory.at(5), rows, rows, sequences, width,
                                      vocabulary, last, pages);
    if (outside.first >= 0) return {std::move(made), -2};
    const int64_t busy = busy_ns.load(), waited = external_ns.load();
    const int64_t failed = p.run(0, ops);
    if (failed >= 0) return {std::move(made), failed};
    Read read = read_outcome(outcome, digests);
    next = read.first;
    made.emplace_back(std::move(read.first), std::move(read.second), busy_ns.load() - busy,
                      external_ns.load() - waited);
  }
  return {std::move(made), -1};
}

}  // namespace

void bind_steps(nb::module_& m) {
  const auto free = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<Outcome>(m, "Outcome")
      .def(nb::init<std::vector<Address>, std::vector<int64_t>, Address, int64_t, int64_t>())
      .def("read", read_outcome, free);
  m.def("step_outside", step_outside);
  m.def("fill_step", fill_step);
  m.def("decode", decode, free);
  m.def("first_outside32", first_outside<int32_t>);
  m.def("first_outside64", first_outside<int64_t>);
  m.def("first_without_page", first_without_page);
}

}  // namespace isobit
