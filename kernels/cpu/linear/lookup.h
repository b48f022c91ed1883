// Moving rows about: token embeddings in and out of shards, sampled rows, pieces of logits.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace isobit {

struct Embedding {
  const void* table;  // [count, width], or tiles of a packed weight of `count` columns
  Number number;
  bool tiled;
  const int32_t* gather;  // of a packed weight, or null
  int64_t packed_width;
  int64_t first;  // the token of row 0
  int64_t count;
  int64_t width;
  const int64_t* tokens;
  void* out;  // [rows, width]; rows of other ranks' tokens are left as they are
};

struct OwnedRows {
  const void* gathered;  // [ranks, rows, width]
  Number number;
  const int64_t* ends;  // [ranks]: where each rank's tokens end
  int64_t ranks;
  int64_t width;
  const int64_t* tokens;
  float* out;  // [rows, width]
};

struct JoinColumns {
  const float* gathered;  // [ranks, rows, most]
  const int64_t* sizes;   // [ranks]: columns that count
  int64_t ranks;
  int64_t most;
  int64_t width;
  float* out;  // [rows, width]
};

struct SelectRows {
  const void* x;
  int64_t row_bytes;
  const int64_t* rows;
  void* out;
};

void embed(const Embedding& job, int64_t rows);
void owned_rows(const OwnedRows& job, int64_t rows);
void join_columns(const JoinColumns& job, int64_t rows);
void select_rows(const SelectRows& job, int64_t rows);

}  // namespace isobit
