// What lies in the memory that the ranks of one host share: words about calls, and their payload.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace isobit {

// Two neighbouring lines: some processors fetch lines in pairs.
constexpr size_t kApart = 128;
constexpr size_t kName = 64;

enum class Op : uint32_t { kAllReduce = 1, kAllGather = 2, kBroadcast = 3 };

// A number that only grows, and how many processes sleep until it does.
struct Flag {
  std::atomic<uint64_t> value;
  std::atomic<uint32_t> sleepers;
};

// What a rank says of a call. The flag is raised last: whoever sees it sees the rest and the slot.
struct alignas(kApart) Call {
  Flag flag;
  Op op;
  uint64_t sequence;
  uint64_t bytes;
  uint64_t site;
  alignas(64) char name[kName];
};

enum class Presence : uint32_t { kAbsent = 0, kHere = 1, kLeft = 2 };

// One rank's words, written by that rank alone. Calls alternate with the parity of the epoch.
struct Post {
  Call calls[2];
  alignas(kApart) Flag reduced;
  alignas(kApart) std::atomic<Presence> presence;
  int64_t pid;
  uint64_t started;
};

enum class Cause : uint32_t { kNone = 0, kTimeout = 1, kMismatch = 2, kFailed = 3 };

// The first failure. Whoever takes `state` from 0 to 1 writes the rest and then sets it to 2.
struct alignas(kApart) Verdict {
  std::atomic<uint32_t> state;
  Cause cause;
  uint32_t rank;
  char text[1500];
};

struct Header {
  uint64_t magic;
  uint64_t degree;
  uint64_t slot_bytes;
  uint64_t two_shot_bytes;
  Verdict verdict;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free, "flags are shared between processes");

struct Sizes {
  uint64_t degree = 0;
  uint64_t slot_bytes = 0;      // per rank and parity
  uint64_t two_shot_bytes = 0;  // from this message size on, ranks share the additions
};

uint64_t bytes_needed(const Sizes& sizes);

struct Created {
  int error;            // errno, or 0
  uint64_t free_bytes;  // of the file system, before
};

// Make the object and reserve all of its pages, so that no later write can run out of them.
Created create_memory(const std::string& name, const Sizes& sizes);
void unlink_memory(const std::string& name);

// An empty object: who can open it shares this memory. Returns errno, or 0.
int place_token(const std::string& name);
bool sees_token(const std::string& name);

// A mapping of the object; throws std::runtime_error when that is impossible.
class Memory {
 public:
  Memory(const std::string& name, const Sizes& sizes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  Header& header() { return *reinterpret_cast<Header*>(base_); }
  Post& post(int64_t rank);
  char* slot(int64_t rank, uint64_t epoch);

 private:
  Sizes sizes_;
  char* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace isobit
