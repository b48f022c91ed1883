// A 64-bit digest of bytes: not against malice, but any single changed word changes it.
#pragma once

#include "machine/simd.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int kDigestChains = 8;  // independent, so that multiplications overlap
constexpr uint64_t kPrime = 0x9e3779b97f4a7c15, kOther = 0xc2b2ae3d27d4eb4f;

// One to one in `state` and in `word`: two inputs that differ in one word cannot meet again here.
ISOBIT_INLINE uint64_t mix(uint64_t state, uint64_t word) {
  state = (state ^ word) * kPrime;
  return state ^ (state >> 29);
}

#ifdef __AVX512DQ__
using Chains = uint64_t __attribute__((vector_size(8 * kDigestChains)));

ISOBIT_INLINE Chains mix(Chains state, Chains word) {
  state = (state ^ word) * kPrime;
  return state ^ (state >> 29);
}
#else
struct Chains {
  uint64_t chain[kDigestChains];
  uint64_t& operator[](int i) { return chain[i]; }
};

ISOBIT_INLINE Chains mix(Chains state, Chains word) {
  for (int i = 0; i < kDigestChains; ++i) {
    uint64_t own = state[i];
    // Kept out of vectors, which have no product of 64-bit words here: one of pieces is slower.
    asm("" : "+r"(own));
    state[i] = mix(own, word[i]);
  }
  return state;
}
#endif

uint64_t digest(const void* data, int64_t bytes, uint64_t seed) {
  const char* from = static_cast<const char*>(data);
  Chains state, word;
  for (int i = 0; i < kDigestChains; ++i) state[i] = seed + kOther * (i + 1);
  int64_t at = 0;
  for (; at + 8 * kDigestChains <= bytes; at += 8 * kDigestChains) {
    memcpy(&word, from + at, sizeof(word));
    state = mix(state, word);
  }
  memset(&word, 0, sizeof(word));
  if (at < bytes) memcpy(&word, from + at, bytes - at);  // data may be null where there are none
  state = mix(state, word);
  uint64_t whole = mix(seed, static_cast<uint64_t>(bytes));
  for (int i = 0; i < kDigestChains; ++i) whole = mix(whole, uint64_t{state[i]});
  return mix(whole, kOther);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
