// From the words of a checkpoint to the lines of a packed weight. Integers only: the same bits on
// every instruction set, so it is built once.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace isobit {

// Element (n, k) lies in the word of its row and its column. A word holds 32 / bits elements that
// follow each other along K, low bits first, or along N, at `shifts`.
struct Pack {
  const uint32_t* words;
  int64_t stride_n;  // in words, from one word to the next along N and along K
  int64_t stride_k;
  int bits;                // 4, 8, 16 or 32
  bool along_k;            // false: 4 bits
  bool split;              // float16: all columns of one k, then all of the next
  const int32_t* shifts;   // along N: where in a word the elements n % 8 lie
  const int32_t* rows;     // [tiles, 64]: which stored row each output is, -1 for padding
  const int32_t* columns;  // [lines, 32 / bits]: which stored column each k is, -1 for padding
  int64_t tiles;
  int64_t lines;
  const int32_t* run_of;  // [lines]
  const uint8_t* zeros;   // [tiles, zeros_stride]: padding of a column, 64 a run; null: fill
  int64_t zeros_stride;
  uint32_t fill;  // an element of padding
  uint32_t* out;  // [tiles, out_stride]: 64 words a line
  int64_t out_stride;
};

void pack(const Pack&);

// Whether none of `count` numbers is a NaN or an infinity.
bool all_finite(const void* values, Number number, int64_t count);

}  // namespace isobit
