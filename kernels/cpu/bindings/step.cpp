// Binding of what lies between two runs of a program: checking and writing the lists of a step, and
// reading what came of it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>

#include "bindings/bindings.h"
#include "machine/threads.h"

namespace nb = nanobind;

namespace isobit {
namespace {

// How far the indices of a step may reach: tokens, positions, pages of the KV cache.
struct Limits {
  int64_t vocabulary, positions, pages;
};

template <class T>
int64_t first_outside(const T* values, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] < 0 || values[i] >= limit) return i;
  }
  return -1;
}

// The first row whose position needs a page that its table lacks, or -1.
int64_t first_without_page(const int32_t* block_tables, int64_t max_pages,
                           const int32_t* row_sequence, const int32_t* positions, int64_t rows,
                           int64_t window, int64_t pages) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t position = positions[row];
    const int64_t begin = window && position >= window ? position - window + 1 : 0;
    const int32_t* table = block_tables + row_sequence[row] * max_pages;
    if (position < 0 || position / kPage >= max_pages) return row;
    for (int64_t page = begin / kPage; page <= position / kPage; ++page) {
      if (table[page] < 0 || table[page] >= pages) return row;
    }
  }
  return -1;
}

// The first of five lists of a step that holds an index outside of its limits, and where; 5 and the
// first row without its pages; or -1.
std::pair<int, int64_t> outside(const Step& a, const Limits& limits) {
  const int64_t where[] = {first_outside(a.tokens, a.rows, limits.vocabulary),
                           first_outside(a.positions, a.rows, limits.positions),
                           first_outside(a.slots, a.rows, limits.pages * kPage),
                           first_outside(a.sequence, a.rows, a.sequences),
                           first_outside(a.sampled, a.sampled_rows, a.rows)};
  for (int list = 0; list < 5; ++list) {
    if (where[list] >= 0) return {list, where[list]};
  }
  const int64_t row = first_without_page(a.block_tables, a.max_pages, a.sequence, a.positions,
                                         a.rows, 0, limits.pages);
  return {row < 0 ? -1 : 5, row};
}

// Where keys and values of a position lie; -1 beyond the pages of its table.
int64_t slot_at(const int32_t* table, int64_t pages, int64_t position) {
  const int64_t page = position / kPage;
  return page < pages ? int64_t{table[page]} * kPage + position % kPage : -1;
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
    at<int64_t>(to.at(2))[row] =
        slot_at(table.data(), static_cast<int64_t>(table.size()), positions.at(row));
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
// for `ends` positions. Ends early where a step reaches outside, or an op fails, whose number it
// returns, or -1.
std::pair<std::vector<Decoded>, int64_t> decode(Program& p, int64_t ops, int64_t count,
                                                std::vector<int64_t> next,
                                                const std::vector<int64_t>& ends,
                                                const Limits& limits, const Outcome& outcome,
                                                bool digests) {
  const Step& a = p.step;
  std::vector<Decoded> made;
  while (static_cast<int64_t>(made.size()) < count) {
    for (int64_t row = 0; row < a.rows; ++row) {
      a.tokens[row] = std::max<int64_t>(next.at(row), 0);
      const int64_t position = ++a.positions[row];
      const int32_t* table = a.block_tables + a.sequence[row] * a.max_pages;
      a.slots[row] = position < ends.at(row) ? slot_at(table, a.max_pages, position) : -1;
    }
    if (outside(a, limits).first >= 0) break;
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
  m.def("step_outside", [](const StepMemory& memory, int64_t vocabulary, int64_t positions,
                           int64_t pages) {
    return outside(step_at(memory), {vocabulary, positions, pages});
  });
  m.def("fill_step", fill_step);
  m.def("decode", [](Program& p, int64_t ops, int64_t count, std::vector<int64_t> next,
                     const std::vector<int64_t>& ends, int64_t vocabulary, int64_t positions,
                     int64_t pages, const Outcome& outcome, bool digests) {
    return decode(p, ops, count, std::move(next), ends, {vocabulary, positions, pages}, outcome,
                  digests);
  }, free);
  m.def("first_outside32", [](Address values, int64_t count, int64_t limit) {
    return first_outside(at<const int32_t>(values), count, limit);
  });
  m.def("first_outside64", [](Address values, int64_t count, int64_t limit) {
    return first_outside(at<const int64_t>(values), count, limit);
  });
  m.def("first_without_page", [](Address block_tables, int64_t max_pages, Address row_sequence,
                                 Address positions, int64_t rows, int64_t window, int64_t pages) {
    return first_without_page(at<const int32_t>(block_tables), max_pages,
                              at<const int32_t>(row_sequence), at<const int32_t>(positions), rows,
                              window, pages);
  });
}

}  // namespace isobit
