#include "linear/lookup.h"

#include <cstring>

#define ISOBIT_SET lookup
#include "machine/number.h"
#undef ISOBIT_SET

namespace isobit {
namespace {

using lookup::Bf16;
using lookup::Half;
using lookup::widen;

int64_t size_of(Number number) { return number == Number::float32 ? 4 : 2; }

// Where k of a packed column begins: bfloat16 lines hold pairs of k, the others one k.
int64_t place(const Embedding& job, int64_t column, int64_t k) {
  const int64_t pair = job.number == Number::bfloat16 ? 2 : 1;
  const int64_t lines = job.packed_width / pair;
  return (((column / kTile) * lines + k / pair) * kTile + column % kTile) * pair + k % pair;
}

void embed_tiled(const Embedding& job, int64_t column, char* out) {
  const int64_t size = size_of(job.number);
  const char* table = static_cast<const char*>(job.table);
  for (int64_t k = 0; k < job.packed_width; ++k) {
    const int64_t to = job.gather ? job.gather[k] : k;
    if (to >= 0) memcpy(out + to * size, table + place(job, column, k) * size, size);
  }
}

}  // namespace

void embed(const Embedding& job, int64_t rows) {
  const int64_t bytes = job.width * size_of(job.number);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t local = job.tokens[row] - job.first;
    if (local < 0 || local >= job.count) continue;
    char* out = static_cast<char*>(job.out) + row * bytes;
    if (job.tiled) {
      embed_tiled(job, local, out);
    } else {
      memcpy(out, static_cast<const char*>(job.table) + local * bytes, bytes);
    }
  }
}

void owned_rows(const OwnedRows& job, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    int64_t owner = 0;
    while (owner + 1 < job.ranks && job.tokens[row] >= job.ends[owner]) ++owner;
    const int64_t from = (owner * rows + row) * job.width;
    float* out = job.out + row * job.width;
    switch (job.number) {
      case Number::float32:
        memcpy(out, static_cast<const float*>(job.gathered) + from, job.width * sizeof(float));
        break;
      case Number::float16:
        for (int64_t i = 0; i < job.width; ++i)
          out[i] = widen(static_cast<const Half*>(job.gathered)[from + i]);
        break;
      case Number::bfloat16:
        for (int64_t i = 0; i < job.width; ++i)
          out[i] = widen(static_cast<const Bf16*>(job.gathered)[from + i]);
    }
  }
}

void join_columns(const JoinColumns& job, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    int64_t column = 0;
    for (int64_t rank = 0; rank < job.ranks && column < job.width; ++rank) {
      const int64_t left = job.width - column;
      const int64_t count = job.sizes[rank] < left ? job.sizes[rank] : left;
      memcpy(job.out + row * job.width + column, job.gathered + (rank * rows + row) * job.most,
             count * sizeof(float));
      column += count;
    }
  }
}

void select_rows(const SelectRows& job, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    memcpy(static_cast<char*>(job.out) + row * job.row_bytes,
           static_cast<const char*>(job.x) + job.rows[row] * job.row_bytes, job.row_bytes);
  }
}

}  // namespace isobit
