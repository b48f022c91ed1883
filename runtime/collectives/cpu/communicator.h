// Sums and gathers of the ranks of a host over shared memory: the same bits on every rank, at every
// degree. Ranks are numbered within the host; in words they have the numbers of the whole run.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "memory.h"
#include "tree.h"

namespace isobit {

class Communicator;

// A named point in the forward pass, and the width of its rows: float32 elements for a sum, bytes
// for a gather.
struct Site {
  Communicator* communicator;
  int64_t width;
  uint64_t hash;
  std::string name;
};

struct Fault {
  Cause cause = Cause::kNone;
  int64_t rank = 0;  // who found it
  std::string text;
};

// One thread of a rank calls at a time. Every rank makes the same calls in the same order.
class Communicator {
 public:
  // `nodes` holds each rank's complete subtrees, `roots` those that a sum ends with: the whole tree,
  // or the complete subtrees of all atoms of the host. Rank 0 is `first_rank` in words. An empty
  // name serves a single rank. Throws std::exception when the memory cannot be mapped or the nodes
  // are not those of the roots.
  Communicator(const std::string& name, const Sizes& sizes, int64_t rank, int64_t first_rank,
               const std::vector<Node>& roots, const std::vector<std::vector<Node>>& nodes,
               double timeout_s);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Call once all ranks have attached: from now on a rank that dies is missed.
  void watch_peers();
  const Site* add_site(const std::string& name, int64_t width);

  // nodes float32 [own nodes, rows, width] -> out float32 [roots, rows, width]; false on failure.
  bool all_reduce(const Site& site, const float* nodes, float* out, int64_t rows);
  // in bytes [rows, width] -> out bytes [degree, rows, width]; false on failure.
  bool all_gather(const Site& site, const char* in, char* out, int64_t rows);
  // data bytes [rows, width]: those of rank `source` on every rank; false on failure.
  bool broadcast(const Site& site, char* data, int64_t rows, int64_t source);

  // End the calls of all with this cause, as though it had been found here.
  void abandon(const std::string& text);
  Fault fault();
  // Tell the others that this rank will make no more calls. The memory stays mapped.
  void leave();

 private:
  using Clock = std::chrono::steady_clock;

  bool begin(const Site& site, Op op, uint64_t bytes);
  void publish();
  bool await_calls();
  bool await_stripes();
  bool await(Flag& flag, int64_t peer);
  bool agrees(int64_t peer);
  bool one_shot(const float* nodes, float* out, int64_t total, int64_t count);
  bool two_shot(const float* nodes, float* out, int64_t total, int64_t count);
  void fill_leaves(const float* nodes, int64_t total, int64_t stride, int64_t offset);
  void reduce(float* out, int64_t stride, int64_t count) const;

  bool failed() { return memory_->header().verdict.state.load(std::memory_order_acquire) != 0; }
  void fail(Cause cause, const std::string& text);
  bool find_dead(bool stripes);
  bool is_missing(int64_t peer, bool stripes);
  std::string missing(bool stripes);
  std::string name_of(int64_t rank) const { return "rank " + std::to_string(first_rank_ + rank); }
  std::string own_call();
  std::string last_call(int64_t peer);

  Flag& called(int64_t rank) { return memory_->post(rank).calls[epoch_ & 1].flag; }
  float* slot(int64_t rank) { return reinterpret_cast<float*>(memory_->slot(rank, epoch_)); }

  const Sizes sizes_;
  const int64_t rank_, first_rank_, degree_;
  const std::chrono::duration<double> timeout_;
  std::vector<int64_t> counts_;  // nodes of each rank
  int64_t planes_ = 1;  // that a slot has room for: nodes or roots
  std::vector<Tree> trees_;
  std::vector<size_t> starts_;  // of each tree's leaves
  std::unique_ptr<Memory> memory_;  // none for a single rank
  std::vector<const float*> leaves_;
  std::vector<bool> watched_;
  std::deque<Site> sites_;
  int spin_ = 0;
  Clock::time_point contested_until_;
  bool left_ = false;

  uint64_t epoch_ = 0;     // counts chunks
  uint64_t sequence_ = 0;  // counts calls
  const Site* site_ = nullptr;
  Op op_ = Op::kAllReduce;
  uint64_t bytes_ = 0;
};

}  // namespace isobit

// For programs that call without Python: the context is a Site; 0 is success.
extern "C" {
int64_t isobit_all_reduce(void* context, const void* nodes, void* out, int64_t rows);
int64_t isobit_all_gather(void* context, const void* in, void* out, int64_t rows);
}
