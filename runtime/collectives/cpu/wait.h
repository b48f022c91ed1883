// Raising a flag, and waiting until another process has raised one.
#pragma once

#include <cstdint>

#include "memory.h"

namespace isobit {

// How long to spin, in pauses. Long where every rank has a core of its own; on a crowded host the
// rank that is waited for may need this very core.
constexpr int kSpinAlone = 4000;
constexpr int kSpinCrowded = 100;

void raise_flag(Flag& flag, uint64_t value);

inline bool raised(const Flag& flag, uint64_t value) {
  return flag.value.load(std::memory_order_acquire) >= value;
}

// Burn a little time; true when the flag was raised meanwhile.
bool spin(const Flag& flag, uint64_t value, int pauses);

// Sleep until the flag changes, for at most `microseconds`.
void sleep_on(Flag& flag, uint64_t value, int64_t microseconds);

}  // namespace isobit
