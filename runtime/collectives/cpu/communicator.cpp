#include "communicator.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "machine/host.h"
#include "process.h"
#include "wait.h"

namespace isobit {
namespace {

constexpr int64_t kLineFloats = 16;

uint64_t hash(const std::string& name) {
  uint64_t value = 14695981039346656037u;
  for (const char c : name) value = (value ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return value;
}

// The elements of a chunk whose sums a rank computes for all, in whole lines.
std::pair<int64_t, int64_t> stripe(int64_t count, int64_t rank, int64_t degree) {
  const int64_t lines = (count + kLineFloats - 1) / kLineFloats;
  const auto at = [&](int64_t r) { return std::min(count, lines * r / degree * kLineFloats); };
  return {at(rank), at(rank + 1)};
}

void copy(float* to, const float* from, int64_t count) {
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace

Communicator::Communicator(const std::string& name, const Sizes& sizes, int64_t rank,
                           int64_t first_rank, const std::vector<Node>& roots,
                           const std::vector<std::vector<Node>>& nodes, double timeout_s)
    : sizes_(sizes),
      rank_(rank),
      first_rank_(first_rank),
      degree_(static_cast<int64_t>(nodes.size())),
      timeout_(timeout_s),
      watched_(nodes.size(), false) {
  planes_ = static_cast<int64_t>(roots.size());
  std::vector<Node> all;
  for (const auto& own : nodes) {
    counts_.push_back(static_cast<int64_t>(own.size()));
    planes_ = std::max(planes_, counts_.back());
    all.insert(all.end(), own.begin(), own.end());
  }
  leaves_.resize(all.size());
  auto leaf = all.begin();
  for (const Node& root : roots) {
    const auto beyond = [&](const Node& node) { return node.first >= root.first + root.second; };
    const auto end = std::find_if(leaf, all.end(), beyond);
    starts_.push_back(static_cast<size_t>(leaf - all.begin()));
    trees_.emplace_back(root, std::vector<Node>(leaf, end));
    leaf = end;
  }
  if (leaf != all.end()) throw std::invalid_argument("a node is part of no root");
  if (sizes.slot_bytes < planes_ * kLineFloats * sizeof(float))
    throw std::invalid_argument("a slot does not hold a line of every node");
  if (degree_ == 1) return;
  memory_ = std::make_unique<Memory>(name, sizes);
  spin_ = degree_ > usable_cores() ? kSpinCrowded : kSpinAlone;
  Post& own = memory_->post(rank);
  own.pid = getpid();
  own.started = process_start(own.pid);
  own.presence.store(Presence::kHere);
}

Communicator::~Communicator() { leave(); }

void Communicator::watch_peers() {
  for (int64_t peer = 0; peer < degree_ && memory_; ++peer) {
    const Post& post = memory_->post(peer);
    // A peer in another process namespace cannot be seen, and only the timeout will miss it.
    watched_[peer] = peer != rank_ && post.started && process_start(post.pid) == post.started;
  }
}

const Site* Communicator::add_site(const std::string& name, int64_t width) {
  sites_.push_back({this, width, hash(name), name});
  return &sites_.back();
}

void Communicator::leave() {
  if (memory_ && !left_) memory_->post(rank_).presence.store(Presence::kLeft);
  left_ = true;
}

bool Communicator::begin(const Site& site, Op op, uint64_t bytes) {
  ++sequence_;
  site_ = &site;
  op_ = op;
  bytes_ = bytes;
  return !left_ && (!memory_ || !failed());
}

// Slots alternate: this one was last used two epochs ago. Whoever raised its flag for the epoch in
// between had finished reading it, and all had, for that epoch has ended here.
void Communicator::publish() {
  Call& call = memory_->post(rank_).calls[epoch_ & 1];
  call.op = op_;
  call.sequence = sequence_;
  call.bytes = bytes_;
  call.site = site_->hash;
  const size_t length = std::min(site_->name.size(), kName - 1);
  std::memcpy(call.name, site_->name.data(), length);
  call.name[length] = 0;
  raise_flag(call.flag, epoch_);
}

bool Communicator::await_calls() {
  for (int64_t peer = 0; peer < degree_; ++peer) {
    if (peer != rank_ && !(await(called(peer), peer) && agrees(peer))) return false;
  }
  return true;
}

bool Communicator::await_stripes() {
  for (int64_t peer = 0; peer < degree_; ++peer) {
    if (peer != rank_ && !await(memory_->post(peer).reduced, peer)) return false;
  }
  return true;
}

bool Communicator::agrees(int64_t peer) {
  const Call& call = memory_->post(peer).calls[epoch_ & 1];
  if (call.op == op_ && call.sequence == sequence_ && call.bytes == bytes_ &&
      call.site == site_->hash)
    return true;
  fail(Cause::kMismatch, name_of(peer) + " called " + last_call(peer) + ", " + name_of(rank_) +
                             " " + own_call());
  return false;
}

// Leaves of this chunk: the others' lie in their slots, the own ones where the caller has them.
void Communicator::fill_leaves(const float* nodes, int64_t total, int64_t stride, int64_t offset) {
  size_t leaf = 0;
  for (int64_t rank = 0; rank < degree_; ++rank) {
    for (int64_t node = 0; node < counts_[rank]; ++node) {
      leaves_[leaf++] =
          (rank == rank_ ? nodes + node * total : slot(rank) + node * stride) + offset;
    }
  }
}

// The sums over the leaves, `stride` apart.
void Communicator::reduce(float* out, int64_t stride, int64_t count) const {
  for (size_t root = 0; root < trees_.size(); ++root)
    trees_[root].reduce(leaves_.data() + starts_[root], out + root * stride, count);
}

bool Communicator::one_shot(const float* nodes, float* out, int64_t total, int64_t count) {
  const int64_t stride = (count + kLineFloats - 1) / kLineFloats * kLineFloats;
  for (int64_t node = 0; node < counts_[rank_]; ++node)
    copy(slot(rank_) + node * stride, nodes + node * total, count);
  publish();
  if (!await_calls()) return false;
  fill_leaves(nodes, total, stride, 0);
  reduce(out, total, count);
  return true;
}

// Nobody else reads the own stripe of the nodes: its places in the slot take the sums.
bool Communicator::two_shot(const float* nodes, float* out, int64_t total, int64_t count) {
  const int64_t stride = (count + kLineFloats - 1) / kLineFloats * kLineFloats;
  const auto [from, to] = stripe(count, rank_, degree_);
  for (int64_t node = 0; node < counts_[rank_]; ++node) {
    float* target = slot(rank_) + node * stride;
    copy(target, nodes + node * total, from);
    copy(target + to, nodes + node * total + to, count - to);
  }
  publish();
  if (!await_calls()) return false;
  fill_leaves(nodes, total, stride, from);
  float* sums = slot(rank_) + from;
  reduce(sums, stride, to - from);
  raise_flag(memory_->post(rank_).reduced, epoch_);
  const auto take = [&](int64_t rank, int64_t first, int64_t last) {
    for (size_t root = 0; root < trees_.size(); ++root)
      copy(out + root * total + first, slot(rank) + root * stride + first, last - first);
  };
  take(rank_, from, to);
  if (!await_stripes()) return false;
  for (int64_t peer = 0; peer < degree_; ++peer) {
    const auto [first, last] = stripe(count, peer, degree_);
    if (peer != rank_) take(peer, first, last);
  }
  return true;
}

bool Communicator::all_reduce(const Site& site, const float* nodes, float* out, int64_t rows) {
  const int64_t total = rows * site.width;
  if (!begin(site, Op::kAllReduce, static_cast<uint64_t>(total) * sizeof(float))) return false;
  if (!memory_) {
    fill_leaves(nodes, total, 0, 0);
    reduce(out, total, total);
    return true;
  }
  const int64_t slot_floats = static_cast<int64_t>(sizes_.slot_bytes / sizeof(float));
  const int64_t most = slot_floats / planes_ / kLineFloats * kLineFloats;
  const bool shared_work = bytes_ >= sizes_.two_shot_bytes;
  int64_t begin = 0;
  do {
    const int64_t count = std::min(most, total - begin);
    ++epoch_;
    if (!(shared_work ? two_shot(nodes + begin, out + begin, total, count)
                      : one_shot(nodes + begin, out + begin, total, count)))
      return false;
    begin += count;
  } while (begin < total);
  return true;
}

bool Communicator::all_gather(const Site& site, const char* in, char* out, int64_t rows) {
  const int64_t total = rows * site.width;
  if (!begin(site, Op::kAllGather, static_cast<uint64_t>(total))) return false;
  const int64_t most = static_cast<int64_t>(sizes_.slot_bytes);
  char* const own = out + rank_ * total;
  if (own != in && total) std::memcpy(own, in, static_cast<size_t>(total));
  int64_t begin = 0;
  do {
    if (!memory_) break;
    const size_t count = static_cast<size_t>(std::min(most, total - begin));
    ++epoch_;
    if (count) std::memcpy(memory_->slot(rank_, epoch_), in + begin, count);
    publish();
    if (!await_calls()) return false;
    for (int64_t peer = 0; peer < degree_ && count; ++peer) {
      if (peer != rank_)
        std::memcpy(out + peer * total + begin, memory_->slot(peer, epoch_), count);
    }
    begin += static_cast<int64_t>(count);
  } while (begin < total);
  return true;
}

bool Communicator::broadcast(const Site& site, char* data, int64_t rows, int64_t source) {
  const int64_t total = rows * site.width;
  if (!begin(site, Op::kBroadcast, static_cast<uint64_t>(total))) return false;
  if (!memory_) return true;
  const int64_t most = static_cast<int64_t>(sizes_.slot_bytes);
  int64_t begin = 0;
  do {
    const size_t count = static_cast<size_t>(std::min(most, total - begin));
    ++epoch_;
    if (count && rank_ == source)
      std::memcpy(memory_->slot(source, epoch_), data + begin, count);
    publish();
    if (!await_calls()) return false;
    if (count && rank_ != source)
      std::memcpy(data + begin, memory_->slot(source, epoch_), count);
    begin += static_cast<int64_t>(count);
  } while (begin < total);
  return true;
}

}  // namespace isobit

int64_t isobit_all_reduce(void* context, const void* nodes, void* out, int64_t rows) {
  const auto& site = *static_cast<const isobit::Site*>(context);
  return !site.communicator->all_reduce(site, static_cast<const float*>(nodes),
                                        static_cast<float*>(out), rows);
}

int64_t isobit_all_gather(void* context, const void* in, void* out, int64_t rows) {
  const auto& site = *static_cast<const isobit::Site*>(context);
  return !site.communicator->all_gather(site, static_cast<const char*>(in),
                                        static_cast<char*>(out), rows);
}
