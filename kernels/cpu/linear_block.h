// The loop that every linear kernel shares: segments, runs, lines, and a block of rows by columns.
//
// A Weight says how one strip of a line, 64 bytes, becomes numbers:
//   X                 what one step of activations is (a float, or a pair of bf16)
//   kLineK, kSteps    k and steps in a line; kBytes the size of a strip of it
//   Line load(...), Zero zero(...), Value value(line, step, zero), Lanes dot(value, x, sum)
#pragma once

#include "simd.h"
#include "threads.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int kRunsAhead = 6;  // rows of scales to prefetch
constexpr int kAhead = 32;  // lines of a tile to prefetch; measured flat from 24 to 40

// Accumulators fill the register file and leave room for weights and one activation.
constexpr int kRows = kWidth == 16 ? 12 : kWidth == 8 ? 4 : 2;
constexpr int kAtOnce = kWidth == 16 ? 2 : 1;
constexpr int kAtOnceOneRow = kWidth == 16 ? 4 : kWidth == 8 ? 2 : 1;

#define ISOBIT_UNROLL _Pragma("GCC unroll 12")

ISOBIT_INLINE Lanes load_number(const void* from, Number number, int64_t index) {
  switch (number) {
    case Number::float32: return load(static_cast<const float*>(from) + index);
    case Number::float16: return load(static_cast<const Half*>(from) + index);
    default: return load(static_cast<const Bf16*>(from) + index);
  }
}

// Where a run's 16 scales or zero points of a strip begin.
ISOBIT_INLINE int64_t table_index(const Linear& a, int64_t run, int64_t strip) {
  return (strip / kStrips * a.runs + run) * kTile + strip % kStrips * kLanes;
}

// The first line of a strip; the strips of a tile are interleaved line by line, so that all of them
// are read as one stream.
ISOBIT_INLINE const unsigned char* strip_data(const Linear& a, int64_t strip, int64_t lines,
                                              int64_t bytes) {
  return a.data + (strip / kStrips * lines * kStrips + strip % kStrips) * bytes;
}

template <class Weight, int R, int T>
void block(const Linear& a, int64_t segment, int64_t row, int64_t strip, Lanes (&total)[R][T]) {
  using X = typename Weight::X;
  const int64_t lines = a.packed_k / Weight::kLineK;
  const int64_t stride = lines * Weight::kSteps;
  const X* x = static_cast<const X*>(a.x) + row * stride;
  const unsigned char* data = strip_data(a, strip, lines, Weight::kBytes);

  ISOBIT_UNROLL for (int m = 0; m < R; ++m)
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) total[m][t] = zero();

  for (int64_t run = a.segment_offsets[segment]; run < a.segment_offsets[segment + 1]; ++run) {
    typename Weight::Zero zeros[T];
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) zeros[t] = Weight::zero(a, run, strip + t);
    Lanes part[R][T];
    ISOBIT_UNROLL for (int m = 0; m < R; ++m)
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) part[m][t] = zero();

    if (R == 1 && a.scales) {
      const int64_t size = a.scale_number == Number::float32 ? 4 : 2;
      const int64_t ahead = table_index(a, run + kRunsAhead, strip);
      ISOBIT_UNROLL for (int t = 0; t < T; ++t)
        __builtin_prefetch(static_cast<const char*>(a.scales) + (ahead + t * kLanes) * size);
    }
    const int64_t end = a.run_offsets[run + 1] / Weight::kLineK;
    for (int64_t line = a.run_offsets[run] / Weight::kLineK; line < end; ++line) {
      typename Weight::Line raw[T];
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
        const unsigned char* from = data + (line * kStrips + t) * Weight::kBytes;
        __builtin_prefetch(from + kAhead * kStrips * Weight::kBytes);
        raw[t] = Weight::load(from);
      }
      ISOBIT_UNROLL for (int step = 0; step < Weight::kSteps; ++step) {
        typename Weight::Value value[T];
        ISOBIT_UNROLL for (int t = 0; t < T; ++t)
          value[t] = Weight::value(raw[t], step, zeros[t]);
        ISOBIT_UNROLL for (int m = 0; m < R; ++m) {
          X pair;
          memcpy(&pair, x + m * stride + line * Weight::kSteps + step, sizeof(X));
          ISOBIT_UNROLL for (int t = 0; t < T; ++t)
            part[m][t] = Weight::dot(value[t], pair, part[m][t]);
        }
      }
    }
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
      if (a.scales) {
        const int64_t column = table_index(a, run, strip + t);
        const Lanes scale = load_number(a.scales, a.scale_number, column);
        ISOBIT_UNROLL for (int m = 0; m < R; ++m)
          total[m][t] = fma(scale, part[m][t], total[m][t]);
      } else {
        ISOBIT_UNROLL for (int m = 0; m < R; ++m) total[m][t] = part[m][t];
      }
    }
  }
}

// A Block computes R rows by T strips of one tile and one segment. This one sums in fp32, the Weight's way.
template <class Weight>
struct Summed {
  template <int R, int T>
  static void run(const Linear& a, int64_t segment, int64_t row, int64_t strip,
                  Lanes (&total)[R][T]) {
    block<Weight, R, T>(a, segment, row, strip, total);
  }
};

template <int R, int T>
void write(const Linear& a, int64_t plane, int64_t row, int64_t strip, const Lanes (&total)[R][T]) {
  ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
    const int64_t column = (strip + t) * kLanes;
    if (column >= a.n) return;  // the rest of the tile is padding
    const int64_t columns = a.n - column < kLanes ? a.n - column : kLanes;
    float* out = a.out + (plane * a.rows + row) * a.out_width + column;
    const Lanes bias = a.bias ? load_at(a.bias + column, columns) : zero();
    for (int m = 0; m < R; ++m) {
      // Not "+ 0": that would turn -0 into 0.
      store_at(out + m * a.out_width, a.bias ? total[m][t] + bias : total[m][t], columns);
    }
  }
}

// The segments of a block, added up along the tree while they are in the cache.
template <class Block, int R, int T>
void outputs(const Linear& a, int64_t row, int64_t strip) {
  Lanes waiting[kMaxNodes][R][T];
  int count = 0;
  for (int64_t segment = 0; segment < a.segments; ++segment) {
    Lanes total[R][T];
    Block::template run<R, T>(a, segment, row, strip, total);
    if (!a.merges) {
      write<R, T>(a, segment, row, strip, total);
      continue;
    }
    for (int32_t merge = a.merges[segment]; merge > 0; --merge) {
      --count;
      ISOBIT_UNROLL for (int m = 0; m < R; ++m)
        ISOBIT_UNROLL for (int t = 0; t < T; ++t) total[m][t] = waiting[count][m][t] + total[m][t];
    }
    ISOBIT_UNROLL for (int m = 0; m < R; ++m)
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) waiting[count][m][t] = total[m][t];
    ++count;
  }
  for (int node = 0; node < count; ++node) write<R, T>(a, node, row, strip, waiting[node]);
}

template <class Block, int R, int T>
int64_t rows_by(const Linear& a, int64_t row, int64_t strip) {
  if constexpr (R <= kRows) {
    for (; a.rows - row >= R; row += R) outputs<Block, R, T>(a, row, strip);
  }
  return row;
}

template <class Block, int T>
void all_rows(const Linear& a, int64_t strip) {
  int64_t row = 0;
  // Twelve rows share a weight best, but sixteen are two blocks of eight.
  if constexpr (kRows >= 12) {
    for (int64_t left = a.rows; left >= 12 && left != 16; left -= 12, row += 12)
      outputs<Block, 12, T>(a, row, strip);
  }
  row = rows_by<Block, 8, T>(a, row, strip);
  row = rows_by<Block, 4, T>(a, row, strip);
  row = rows_by<Block, 2, T>(a, row, strip);
  rows_by<Block, 1, T>(a, row, strip);
}

int64_t at_once(const Linear& a) { return a.rows == 1 ? kAtOnceOneRow : kAtOnce; }

template <class Block>
void columns(const void* context, int64_t unit) {
  const Linear& a = *static_cast<const Linear*>(context);
  const int64_t first = unit * at_once(a);
  if (a.rows == 1) {
    outputs<Block, 1, kAtOnceOneRow>(a, 0, first);
  } else {
    all_rows<Block, kAtOnce>(a, first);
  }
}

template <class Block>
void plan_blocks(Product& product) {
  const int64_t width = at_once(product.linear) * kLanes;
  product.task = columns<Block>;
  product.units = (product.linear.n + width - 1) / width;
}

template <class Weight>
void plan_linear(Product& product) {
  plan_blocks<Summed<Weight>>(product);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
