#include "digest.h"

#include <cstring>

namespace isobit {
namespace {

constexpr int kLanes = 8;  // independent chains, so that multiplications overlap
constexpr uint64_t kPrime = 0x9e3779b97f4a7c15, kOther = 0xc2b2ae3d27d4eb4f;

// One to one in `state` and in `word`: two inputs that differ in one word cannot meet again here.
uint64_t mix(uint64_t state, uint64_t word) {
  state = (state ^ word) * kPrime;
  return state ^ (state >> 29);
}

}  // namespace

uint64_t digest(const void* data, int64_t bytes, uint64_t seed) {
  const char* from = static_cast<const char*>(data);
  uint64_t lane[kLanes], word[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = seed + kOther * (i + 1);
  int64_t at = 0;
  for (; at + 8 * kLanes <= bytes; at += 8 * kLanes) {
    memcpy(word, from + at, sizeof(word));
    for (int i = 0; i < kLanes; ++i) lane[i] = mix(lane[i], word[i]);
  }
  memset(word, 0, sizeof(word));
  if (at < bytes) memcpy(word, from + at, bytes - at);  // data may be null where there are none
  for (int i = 0; i < kLanes; ++i) lane[i] = mix(lane[i], word[i]);
  uint64_t state = mix(seed, static_cast<uint64_t>(bytes));
  for (int i = 0; i < kLanes; ++i) state = mix(state, lane[i]);
  return mix(state, kOther);
}

}  // namespace isobit
