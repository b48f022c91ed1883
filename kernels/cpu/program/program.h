// Ops recorded once over numbered buffers, then run many times by one call each: a step of a model
// is a few hundred ops, and the border to Python costs more than most of them.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "dispatch.h"

namespace isobit {

// What changes from one run to the next.
struct Step {
  int64_t* tokens = nullptr;
  int32_t* positions = nullptr;
  int64_t* slots = nullptr;
  const int32_t* sequence = nullptr;      // of each row
  const int64_t* sampled = nullptr;       // row numbers
  const int32_t* block_tables = nullptr;  // [sequences, max_pages]
  int64_t rows = 0;
  int64_t sampled_rows = 0;
  int64_t sequences = 0;
  int64_t max_pages = 0;
};

// Code from elsewhere, such as a collective. Anything but 0 ends the run.
using External = int64_t (*)(void* context, const void* in, void* out, int64_t rows);

class Program {
 public:
  using Id = int64_t;
  using Op = std::function<void(const Step&, int64_t rows)>;

  Id buffer();                          // without memory yet
  void place(Id buffer, void* memory);  // may be called again between runs
  void* at(Id buffer) const { return buffers_[buffer]; }

  void use_sampled_rows() { sampled_ = true; }  // what is recorded from now on
  int64_t record(Op op);                        // returns its number
  int64_t record_external(External call, void* context, Id in, Id out);

  Step step;

  // Runs ops [begin, end). Returns -1, or the number of the external op that failed.
  int64_t run(int64_t begin, int64_t end);

 private:
  struct Entry {
    Op op;  // empty for an external one
    External external;
    void* context;
    Id in, out;
    bool sampled;
  };
  std::vector<void*> buffers_;
  std::vector<Entry> entries_;
  bool sampled_ = false;
};

// Nanoseconds that this process has spent inside kernels, and inside external ops.
extern std::atomic<int64_t> busy_ns;
extern std::atomic<int64_t> external_ns;

// Adds the time of its life to a counter.
class Timed {
 public:
  explicit Timed(std::atomic<int64_t>& counter = busy_ns);
  ~Timed();

 private:
  std::atomic<int64_t>& counter_;
  int64_t begin_;
};

}  // namespace isobit
