#include "wait.h"

#include <ctime>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#endif

#include "machine/host.h"

namespace isobit {
namespace {

#if defined(__linux__) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ISOBIT_FUTEX

// The system compares 32 bits: the low half of the number, which changes with every raise.
uint32_t* low_half(Flag& flag) { return reinterpret_cast<uint32_t*>(&flag.value); }
#endif

}  // namespace

void raise_flag(Flag& flag, uint64_t value) {
  // Sequentially consistent on both sides: either this sees the sleeper or the sleeper sees this.
  flag.value.store(value);
#ifdef ISOBIT_FUTEX
  if (flag.sleepers.load())
    syscall(SYS_futex, low_half(flag), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#endif
}

bool spin(const Flag& flag, uint64_t value, int pauses) {
  for (int i = 0; i < pauses; ++i) {
    if (raised(flag, value)) return true;
    relax();
  }
  return false;
}

void sleep_on(Flag& flag, uint64_t value, int64_t microseconds) {
  const timespec most = {static_cast<time_t>(microseconds / 1000000),
                         static_cast<long>(microseconds % 1000000 * 1000)};
#ifdef ISOBIT_FUTEX
  flag.sleepers.fetch_add(1);
  const uint64_t seen = flag.value.load();
  if (seen < value)
    syscall(SYS_futex, low_half(flag), FUTEX_WAIT, static_cast<uint32_t>(seen), &most, nullptr, 0);
  flag.sleepers.fetch_sub(1);
#else
  (void)flag, (void)value;
  const timespec nap = {0, 50000};
  nanosleep(most.tv_sec || most.tv_nsec > nap.tv_nsec ? &nap : &most, nullptr);
#endif
}

}  // namespace isobit
