// The loop that every linear kernel shares: segments, runs, lines, and a block of rows by columns.
//
// A Weight says how one strip of a line, 64 bytes, becomes numbers, and what is summed:
//   X                 what one step of activations is (a float, a pair of bf16, some codes)
//   kLineK, kSteps    k and steps in a line; kBytes the size of a strip of it
//   kDear             whether value() takes long
//   Zero zero(...), Line load(bytes, zero), Value value(line, step, zero)
//   Sum begin(a, segment, row)                          what a run starts with
//   Sum dot(value, x, sum)                              one step of it
//   Lanes end(a, segment, row, scale, sum, before)      the runs before and this one
#pragma once

#include "machine/simd.h"
#include "machine/threads.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int kRunsAhead = 6;  // rows of scales to prefetch
constexpr int kAhead = 40;  // lines of a tile to prefetch; measured flat from 32 to 48
constexpr int kGroupRows = 96;  // rows whose activations stay in the cache while columns pass

// Sums of a block, rows by strips, fill the register file and leave room for a line of weights and
// one activation.
template <int R, int T>
struct Shape {
  static constexpr int rows = R, strips = T;
};
using OneRow = Shape<1, kWidth == 16 ? 4 : kWidth == 8 ? 2 : 1>;
using Wide = Shape<kWidth == 16 ? 6 : kWidth == 8 ? 4 : 2, kWidth == 16 ? 4 : 1>;
// Numbers that take long to make are shared by more rows, and need registers of their own.
using Tall = Shape<kWidth == 16 ? 12 : Wide::rows, kWidth == 16 ? 2 : Wide::strips>;
using Few = Shape<kWidth == 16 ? 4 : Wide::rows, Wide::strips>;

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
ISOBIT_INLINE void add_run(const Linear& a, int64_t segment, int64_t run, int64_t row,
                           int64_t strip, typename Weight::Sum (&sum)[R][T]) {
  using X = typename Weight::X;
  const int64_t lines = a.packed_k / Weight::kLineK;
  const int64_t stride = lines * Weight::kSteps;
  const X* x = static_cast<const X*>(a.x) + row * stride;
  const unsigned char* data = strip_data(a, strip, lines, Weight::kBytes);
  const bool once = a.rows == R;

  typename Weight::Zero zeros[T];
  ISOBIT_UNROLL for (int t = 0; t < T; ++t) zeros[t] = Weight::zero(a, run, strip + t);
  ISOBIT_UNROLL for (int m = 0; m < R; ++m)
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) sum[m][t] = Weight::begin(a, segment, row + m);

  const int64_t end = a.run_offsets[run + 1] / Weight::kLineK;
  for (int64_t line = a.run_offsets[run] / Weight::kLineK; line < end; ++line) {
    typename Weight::Line raw[T];
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
      const unsigned char* from = data + (line * kStrips + t) * Weight::kBytes;
      const unsigned char* ahead = from + kAhead * kStrips * Weight::kBytes;
      // What is read once must not drive everything else out of the caches.
      once ? __builtin_prefetch(ahead, 0, 0) : __builtin_prefetch(ahead);
      raw[t] = Weight::load(from, zeros[t]);
    }
    ISOBIT_UNROLL for (int step = 0; step < Weight::kSteps; ++step) {
      typename Weight::Value value[T];
      ISOBIT_UNROLL for (int t = 0; t < T; ++t) value[t] = Weight::value(raw[t], step, zeros[t]);
      ISOBIT_UNROLL for (int m = 0; m < R; ++m) {
        X some;
        memcpy(&some, x + m * stride + line * Weight::kSteps + step, sizeof(X));
        ISOBIT_UNROLL for (int t = 0; t < T; ++t)
          sum[m][t] = Weight::dot(value[t], some, sum[m][t]);
      }
    }
  }
}

// R rows by T strips of one tile and one segment. Sums of a run are in registers, `total` is in
// memory: both at once would not fit.
template <class Weight, int R, int T>
ISOBIT_INLINE void block(const Linear& a, int64_t segment, int64_t row, int64_t strip,
                         Lanes (&total)[R][T]) {
  const int64_t begin = a.segment_offsets[segment], end = a.segment_offsets[segment + 1];
  if (begin == end) {
    for (int m = 0; m < R; ++m)
      for (int t = 0; t < T; ++t) total[m][t] = zero();
  }
  for (int64_t run = begin; run < end; ++run) {
    if (R == 1 && a.scales) {
      const int64_t size = a.scale_number == Number::float32 ? 4 : 2;
      const int64_t ahead = table_index(a, run + kRunsAhead, strip);
      ISOBIT_UNROLL for (int t = 0; t < T; ++t)
        __builtin_prefetch(static_cast<const char*>(a.scales) + (ahead + t * kLanes) * size);
    }
    typename Weight::Sum sum[R][T];
    add_run<Weight, R, T>(a, segment, run, row, strip, sum);
    ISOBIT_UNROLL for (int t = 0; t < T; ++t) {
      const int64_t column = table_index(a, run, strip + t);
      const Lanes scale = a.scales ? load_number(a.scales, a.scale_number, column) : zero();
      if (run == begin) {
        ISOBIT_UNROLL for (int m = 0; m < R; ++m)
          total[m][t] = Weight::end(a, segment, row + m, scale, sum[m][t], zero());
      } else {
        ISOBIT_UNROLL for (int m = 0; m < R; ++m)
          total[m][t] = Weight::end(a, segment, row + m, scale, sum[m][t], total[m][t]);
      }
    }
  }
}

// Weights that are summed in fp32, a scale for every run, or none and one run in a segment.
struct Summed {
  using Sum = Lanes;
  ISOBIT_INLINE Lanes begin(const Linear&, int64_t, int64_t) { return zero(); }
  ISOBIT_INLINE Lanes end(const Linear& a, int64_t, int64_t, Lanes scale, Lanes sum, Lanes before) {
    return a.scales ? fma(scale, sum, before) : sum;
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
template <class Weight, int R, int T>
void outputs(const Linear& a, int64_t row, int64_t strip) {
  Lanes waiting[kMaxNodes + 1][R][T];
  int count = 0;
  for (int64_t segment = 0; segment < a.segments; ++segment) {
    block<Weight, R, T>(a, segment, row, strip, waiting[count]);
    if (!a.merges) {
      write<R, T>(a, segment, row, strip, waiting[0]);
      continue;
    }
    for (int32_t merge = a.merges[segment]; merge > 0; --merge) {
      --count;
      ISOBIT_UNROLL for (int m = 0; m < R; ++m)
        ISOBIT_UNROLL for (int t = 0; t < T; ++t)
          waiting[count][m][t] = waiting[count][m][t] + waiting[count + 1][m][t];
    }
    ++count;
  }
  for (int node = 0; node < count; ++node) write<R, T>(a, node, row, strip, waiting[node]);
}

template <class Weight, int T, int R>
void some_rows(const Linear& a, int64_t row, int64_t count, int64_t strip) {
  if constexpr (R > 0) {
    if (count == R) return outputs<Weight, R, T>(a, row, strip);
    some_rows<Weight, T, R - 1>(a, row, count, strip);
  }
}

// Calls op with the shape of the blocks that these rows are cut into.
template <class Weight, class Op>
void with_shape(const Linear& a, Op op) {
  if (a.rows == 1) return op(OneRow{});
  if constexpr (Weight::kDear) {
    if (a.rows <= Few::rows) return op(Few{});
    op(Tall{});
  } else {
    op(Wide{});
  }
}

int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to; }

// A unit is a group of rows by some strips; columns run fastest. Rows are shared evenly among
// groups, and those of a group among blocks: no block is left with a row or two.
struct Units {
  int64_t rows, groups, columns;

  Units(const Linear& a, int strips)
      : rows(a.rows),
        groups(rounded_up(a.rows, kGroupRows)),
        columns(rounded_up(a.n, strips * kLanes)) {}
  int64_t first_row(int64_t unit) const { return rows * (unit / columns) / groups; }
  int64_t end_row(int64_t unit) const { return rows * (unit / columns + 1) / groups; }
};

template <class Weight, int R, int T>
void blocks(const Linear& a, int64_t begin, int64_t end, int64_t strip) {
  const int64_t rows = end - begin, count = rounded_up(rows, R);
  for (int64_t b = 0; b < count; ++b) {
    const int64_t from = rows * b / count;
    some_rows<Weight, T, R>(a, begin + from, rows * (b + 1) / count - from, strip);
  }
}

template <class Weight>
void unit(const void* context, int64_t unit) {
  const Linear& a = *static_cast<const Linear*>(context);
  with_shape<Weight>(a, [&](auto shape) {
    constexpr int R = decltype(shape)::rows, T = decltype(shape)::strips;
    const Units units(a, T);
    blocks<Weight, R, T>(a, units.first_row(unit), units.end_row(unit), unit % units.columns * T);
  });
}

template <class Weight>
void plan_linear(Product& product) {
  with_shape<Weight>(product.linear, [&](auto shape) {
    const Units units(product.linear, shape.strips);
    product.task = unit<Weight>;
    product.units = units.groups * units.columns;
  });
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
