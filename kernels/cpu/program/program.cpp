#include "program/program.h"

#include <chrono>

namespace isobit {
namespace {

int64_t now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

}  // namespace

std::atomic<int64_t> busy_ns{0};
std::atomic<int64_t> external_ns{0};

Timed::Timed(std::atomic<int64_t>& counter) : counter_(counter), begin_(now()) {}
Timed::~Timed() { counter_ += now() - begin_; }

Program::Id Program::buffer() {
  buffers_.push_back(nullptr);
  return static_cast<Id>(buffers_.size()) - 1;
}

void Program::place(Id buffer, void* memory) { buffers_[buffer] = memory; }

int64_t Program::record(Op op) {
  entries_.push_back({std::move(op), nullptr, nullptr, 0, 0, sampled_});
  return static_cast<int64_t>(entries_.size()) - 1;
}

int64_t Program::record_external(External call, void* context, Id in, Id out) {
  entries_.push_back({nullptr, call, context, in, out, sampled_});
  return static_cast<int64_t>(entries_.size()) - 1;
}

int64_t Program::run(int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Entry& entry = entries_[i];
    const int64_t rows = entry.sampled ? step.sampled_rows : step.rows;
    if (entry.op) {
      const Timed timed(busy_ns);
      entry.op(step, rows);
    } else {
      const Timed timed(external_ns);
      if (entry.external(entry.context, at(entry.in), at(entry.out), rows)) return i;
    }
  }
  return -1;
}

}  // namespace isobit
