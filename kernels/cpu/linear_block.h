// The loop that every linear kernel shares: segments, runs, lines, and a block of rows by columns.
//
// A Weight says how one 64-byte line becomes numbers:
//   X                 what one step of activations is (a float, or a pair of bf16)
//   kLineK, kSteps    k and steps in a line; kBytes its size
//   Line load(...), Zero zero(...), Value value(line, step, zero), Lanes dot(value, x, sum)
#pragma once

#include "simd.h"
#include "threads.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int kRunsAhead = 6;  // rows of scales to prefetch
constexpr int kAhead = 64;  // lines to prefetch; measured flat from 40 to 64

// Accumulators fill the register file and leave room for weights and one activation.
constexpr int kRows = kWidth == 16 ? 12 : kWidth == 8 ? 4 : 2;
constexpr int kTiles = kWidth == 16 ? 2 : 1;
constexpr int kTilesOneRow = kWidth == 16 ? 4 : kWidth == 8 ? 2 : 1;

#define ISOBIT_UNROLL _Pragma("GCC unroll 12")

ISOBIT_INLINE Lanes load_number(const void* from, Number number, int64_t index) {
  switch (number) {
    case Number::float32: return load(static_cast<const float*>(from) + index);
    case Number::float16: return load(static_cast<const Half*>(from) + index);
    default: return load(static_cast<const Bf16*>(from) + index);
  }
}

// Where a run's 16 scales or zero points of a tile begin.
ISOBIT_INLINE int64_t table_index(const Linear& a, int64_t run, int64_t tile) {
  return (tile * a.runs + run) * kTile;
}

template <class Weight, int R, int T>
void block(const Linear& a, int64_t segment, int64_t row, int64_t tile, Lanes (&total)[R][T]) {
  using X = typename Weight::X;
  const int64_t lines = a.packed_k / Weight::kLineK;
  const int64_t stride = lines * Weight::kSteps;
  const X* x = static_cast<const X*>(a.x) + row * stride;
  const unsigned char* data = a.data + tile * lines * Weight::kBytes;
  // Past the end of a tile comes the tile after this block.
  const int64_t jump = kAhead + (T - 1) * lines;

  ISOBIT_UNROLL for (int m = 0; m < R; ++m)
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) total[m][t] = zero();

  for (int64_t run = a.segment_offsets[segment]; run < a.segment_offsets[segment + 1]; ++run) {
    typename Weight::Zero zeros[T];
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) zeros[t] = Weight::zero(a, run, tile + t);
    Lanes part[R][T];
    ISOBIT_UNROLL for (int m = 0; m < R; ++m)
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) part[m][t] = zero();

    if (R == 1 && a.scales) {
      const int64_t size = a.scale_number == Number::float32 ? 4 : 2;
      const int64_t ahead = run + kRunsAhead + (run + kRunsAhead < a.runs ? 0 : (T - 1) * a.runs);
      ISOBIT_UNROLL for (int t = 0; t < T; ++t)
        __builtin_prefetch(static_cast<const char*>(a.scales) + table_index(a, ahead, tile + t) * size);
    }
    const int64_t end = a.run_offsets[run + 1] / Weight::kLineK;
    for (int64_t line = a.run_offsets[run] / Weight::kLineK; line < end; ++line) {
      typename Weight::Line raw[T];
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
        const unsigned char* from = data + (t * lines + line) * Weight::kBytes;
        __builtin_prefetch(from + (line + kAhead < lines ? kAhead : jump) * Weight::kBytes);
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
        const int64_t column = table_index(a, run, tile + t);
        const Lanes scale = load_number(a.scales, a.scale_number, column);
        ISOBIT_UNROLL for (int m = 0; m < R; ++m)
          total[m][t] = fma(scale, part[m][t], total[m][t]);
      } else {
        ISOBIT_UNROLL for (int m = 0; m < R; ++m) total[m][t] = part[m][t];
      }
    }
  }
}

// A Block computes R rows by T tiles of one segment. This one sums in fp32, the Weight's way.
template <class Weight>
struct Summed {
  template <int R, int T>
  static void run(const Linear& a, int64_t segment, int64_t row, int64_t tile,
                  Lanes (&total)[R][T]) {
    block<Weight, R, T>(a, segment, row, tile, total);
  }
};

template <int R, int T>
void write(const Linear& a, int64_t plane, int64_t row, int64_t tile, const Lanes (&total)[R][T]) {
  ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
    const int64_t column = (tile + t) * kTile;
    const int64_t columns = a.n - column < kTile ? a.n - column : kTile;
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
void outputs(const Linear& a, int64_t row, int64_t tile) {
  Lanes waiting[kMaxNodes][R][T];
  int count = 0;
  for (int64_t segment = 0; segment < a.segments; ++segment) {
    Block::template run<R, T>(a, segment, row, tile, waiting[count]);
    if (!a.merges) {
      write<R, T>(a, segment, row, tile, waiting[0]);
      continue;
    }
    ++count;
    for (int32_t merge = a.merges[segment]; merge > 0; --merge) {
      --count;
      for (int m = 0; m < R; ++m)
        ISOBIT_UNROLL for (int t = 0; t < T; ++t)
          waiting[count - 1][m][t] = waiting[count - 1][m][t] + waiting[count][m][t];
    }
  }
  for (int node = 0; node < count; ++node) write<R, T>(a, node, row, tile, waiting[node]);
}

template <class Block, int R, int T>
int64_t rows_by(const Linear& a, int64_t row, int64_t tile) {
  if constexpr (R <= kRows) {
    for (; a.rows - row >= R; row += R) outputs<Block, R, T>(a, row, tile);
  }
  return row;
}

template <class Block, int T>
void all_rows(const Linear& a, int64_t tile) {
  int64_t row = 0;
  // Twelve rows share a weight best, but sixteen are two blocks of eight.
  if constexpr (kRows >= 12) {
    for (int64_t left = a.rows; left >= 12 && left != 16; left -= 12, row += 12)
      outputs<Block, 12, T>(a, row, tile);
  }
  row = rows_by<Block, 8, T>(a, row, tile);
  row = rows_by<Block, 4, T>(a, row, tile);
  row = rows_by<Block, 2, T>(a, row, tile);
  rows_by<Block, 1, T>(a, row, tile);
}

int64_t width(const Linear& a) { return a.rows == 1 ? kTilesOneRow : kTiles; }

template <class Block>
void columns(const void* context, int64_t unit) {
  const Linear& a = *static_cast<const Linear*>(context);
  const int64_t first = unit * width(a);
  const int64_t last = first + width(a) < a.tiles ? first + width(a) : a.tiles;
  if (last - first < width(a)) {
    for (int64_t tile = first; tile < last; ++tile) all_rows<Block, 1>(a, tile);
  } else if (a.rows == 1) {
    outputs<Block, 1, kTilesOneRow>(a, 0, first);
  } else {
    all_rows<Block, kTiles>(a, first);
  }
}

template <class Block>
void plan_blocks(Product& product) {
  product.task = columns<Block>;
  product.units = (product.linear.tiles + width(product.linear) - 1) / width(product.linear);
}

template <class Weight>
void plan_linear(Product& product) {
  plan_blocks<Summed<Weight>>(product);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
