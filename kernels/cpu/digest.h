// A 64-bit digest of bytes: not against malice, but any single changed word changes it.
#pragma once

#include <cstdint>

namespace isobit {

uint64_t digest(const void* data, int64_t bytes, uint64_t seed);

}  // namespace isobit
