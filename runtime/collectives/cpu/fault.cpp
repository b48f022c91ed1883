// The slow side of waiting: what is looked at while a rank is late, and what is said about it.
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "communicator.h"
#include "process.h"
#include "wait.h"

namespace isobit {
namespace {

using std::chrono::microseconds;

constexpr microseconds kYieldAlone{2000};
constexpr microseconds kYieldCrowded{50};
// A yield that takes as long as this gave the core to somebody with work of his own. Whoever sleeps
// instead gets it back sooner, so for a while nothing is yielded.
constexpr microseconds kLongYield{200};
constexpr microseconds kContested{100000};
constexpr microseconds kFirstLook{100000};
constexpr microseconds kBetweenLooks{250000};
constexpr int64_t kNap = 20000;

std::string describe(Op op, uint64_t sequence, uint64_t bytes, const std::string& name) {
  const char* operation = op == Op::kAllReduce   ? "all_reduce"
                          : op == Op::kAllGather ? "all_gather"
                                                 : "broadcast";
  return std::string(operation) + " number " + std::to_string(sequence) + " of " +
         std::to_string(bytes) + " bytes at " + name;
}

std::string seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g s", value);
  return text;
}

}  // namespace

bool Communicator::await(Flag& flag, int64_t peer) {
  if (spin(flag, epoch_, spin_)) return true;
  const bool stripes = &flag == &memory_->post(peer).reduced;
  const auto yields = spin_ == kSpinAlone ? kYieldAlone : kYieldCrowded;
  const auto started = Clock::now();
  auto next_look = started + kFirstLook;
  while (!raised(flag, epoch_)) {
    if (failed()) return false;
    const auto now = Clock::now();
    if (now - started < yields && now >= contested_until_) {
      sched_yield();
      const auto after = Clock::now();
      if (after - now > kLongYield) contested_until_ = after + kContested;
      continue;
    }
    if (now >= next_look) {
      if (find_dead(stripes)) return false;
      next_look = now + kBetweenLooks;
    }
    const auto left = std::chrono::duration_cast<microseconds>(timeout_ - (now - started)).count();
    if (left <= 0) {
      fail(Cause::kTimeout, own_call() + ": no answer within " + seconds(timeout_.count()) +
                                " from " + missing(stripes));
      return false;
    }
    sleep_on(flag, epoch_, std::min<int64_t>(left, kNap));
  }
  return true;
}

bool Communicator::is_missing(int64_t peer, bool stripes) {
  return peer != rank_ && !raised(stripes ? memory_->post(peer).reduced : called(peer), epoch_);
}

std::string Communicator::missing(bool stripes) {
  std::string names;
  for (int64_t peer = 0; peer < degree_; ++peer) {
    if (!is_missing(peer, stripes)) continue;
    names += (names.empty() ? "" : ", ") + name_of(peer) + " (its last call: " + last_call(peer) +
             ")";
  }
  return names;
}

// A rank may have raised its flag just before it ended: what it said counts, so flags are looked at
// last.
bool Communicator::find_dead(bool stripes) {
  for (int64_t peer = 0; peer < degree_; ++peer) {
    const Post& post = memory_->post(peer);
    const bool left = post.presence.load() == Presence::kLeft;
    const bool dead = !left && watched_[peer] && process_start(post.pid) != post.started;
    if (!(left || dead) || !is_missing(peer, stripes)) continue;
    fail(Cause::kFailed, own_call() + ": " + name_of(peer) + (left ? " has left" : " has died") +
                             " (its last call: " + last_call(peer) + ")");
    return true;
  }
  return false;
}

void Communicator::fail(Cause cause, const std::string& text) {
  Verdict& verdict = memory_->header().verdict;
  uint32_t nobody = 0;
  if (!verdict.state.compare_exchange_strong(nobody, 1)) return;
  verdict.cause = cause;
  verdict.rank = static_cast<uint32_t>(first_rank_ + rank_);
  const size_t length = std::min(text.size(), sizeof(verdict.text) - 1);
  std::memcpy(verdict.text, text.data(), length);
  verdict.text[length] = 0;
  verdict.state.store(2, std::memory_order_release);
}

void Communicator::abandon(const std::string& text) {
  if (memory_ && !left_) fail(Cause::kFailed, text);
}

Fault Communicator::fault() {
  if (left_ || !memory_ || !failed())
    return {left_ ? Cause::kFailed : Cause::kNone, first_rank_ + rank_, "these collectives are closed"};
  const Verdict& verdict = memory_->header().verdict;
  const auto started = Clock::now();
  while (verdict.state.load(std::memory_order_acquire) != 2) {
    if (Clock::now() - started > kFirstLook)
      return {Cause::kFailed, first_rank_ + rank_, "another rank died while it reported a failure"};
    sched_yield();
  }
  return {verdict.cause, static_cast<int64_t>(verdict.rank), verdict.text};
}

std::string Communicator::own_call() { return describe(op_, sequence_, bytes_, site_->name); }

std::string Communicator::last_call(int64_t peer) {
  const Call* calls = memory_->post(peer).calls;
  const Call& last = calls[calls[1].flag.value.load() > calls[0].flag.value.load()];
  if (!last.flag.value.load()) return "none";
  char name[kName];
  std::memcpy(name, last.name, kName);
  name[kName - 1] = 0;
  return describe(last.op, last.sequence, last.bytes, name);
}

}  // namespace isobit
