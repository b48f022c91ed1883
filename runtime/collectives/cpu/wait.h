// Raising a flag, and waiting until another process has raised one.
#pragma once

#include <cstdint>

#include "memory.h"

namespace isobit {

// How long to spin, in pauses (some 25 ns each), before the core is offered to others: on a crowded
// host the rank that is waited for may need this very core. Offering costs little where nobody else
// wants it.
constexpr int kSpinAlone = 200;
constexpr int kSpinCrowded = 40;

void raise_flag(Flag& flag, uint64_t value);

inline bool raised(const Flag& flag, uint64_t value) {
  return flag.value.load(std::memory_order_acquire) >= value;
}

// Burn a little time; true when the flag was raised meanwhile.
bool spin(const Flag& flag, uint64_t value, int pauses);

// Sleep until the flag changes, for at most `microseconds`.
void sleep_on(Flag& flag, uint64_t value, int64_t microseconds);

}  // namespace isobit
