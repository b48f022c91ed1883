// Ops on rows: widening, RMS norm, silu(gate) * up, rotary embedding with the cache write.
#pragma once

#include "machine/simd.h"
#include "machine/threads.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

// Calls op(T{}) for the number's type.
template <class Op>
void with_type(Number number, Op op) {
  if (number == Number::float32) return op(float{});
  if (number == Number::float16) return op(Half{});
  op(Bf16{});
}

// Calls op(i, count) for every stretch of at most 16 lanes; count < 16 only in the last one.
template <class Op>
ISOBIT_INLINE void each_lanes(int64_t width, Op op) {
  for (int64_t i = 0; i < width; i += kLanes) op(i, width - i < kLanes ? width - i : kLanes);
}

template <class T>
void widen_row(const Gather& a, int64_t row) {
  const T* x = static_cast<const T*>(a.x) + row * a.k;
  float* out = static_cast<float*>(a.out) + row * a.packed_k;
  if (a.index) {
    for (int64_t i = 0; i < a.packed_k; ++i) out[i] = a.index[i] < 0 ? 0.f : widen(x[a.index[i]]);
  } else {
    each_lanes(a.k, [&](int64_t i, int64_t count) { store_at(out + i, load_at(x + i, count), count); });
  }
}

void widen_rows(const Gather& a) {
  parallel_for(a.rows, [](const void* context, int64_t row) {
    const Gather& a = *static_cast<const Gather*>(context);
    with_type(a.number, [&](auto t) { widen_row<decltype(t)>(a, row); });
  }, &a);
}

// The root of a sum over ranks gets its bias and joins the residual stream.
ISOBIT_INLINE void join_residual(const RmsNorm& a, int64_t row) {
  float* x = a.x + row * a.width;
  float* add = a.add + row * a.width;
  each_lanes(a.width, [&](int64_t i, int64_t count) {
    Lanes root = load_at(add + i, count);
    if (a.bias) root = root + load_at(a.bias + i, count);
    store_at(add + i, root, count);
    store_at(x + i, load_at(x + i, count) + root, count);
  });
}

ISOBIT_INLINE float inverse_norm(const float* x, int64_t width, float eps) {
  Lanes squares = zero();
  each_lanes(width, [&](int64_t i, int64_t count) {
    const Lanes v = load_at(x + i, count);
    squares = fma(v, v, squares);
  });
  return 1.f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
}

template <class W, class Out>
void normalize(const float* x, const W* weight, int64_t width, float eps, Out* out) {
  const Lanes inverse = broadcast(inverse_norm(x, width, eps));
  each_lanes(width, [&](int64_t i, int64_t count) {
    store_at(out + i, load_at(x + i, count) * inverse * load_at(weight + i, count), count);
  });
}

void rms_norm(const RmsNorm& a) {
  parallel_for(a.rows, [](const void* context, int64_t row) {
    const RmsNorm& a = *static_cast<const RmsNorm*>(context);
    if (a.add) join_residual(a, row);
    if (!a.weight) return;
    with_type(a.weight_number, [&](auto w) {
      with_type(a.out_number, [&](auto o) {
        normalize(a.x + row * a.width, static_cast<const decltype(w)*>(a.weight), a.width, a.eps,
                  static_cast<decltype(o)*>(a.out) + row * a.width);
      });
    });
  }, &a);
}

constexpr int64_t kStretch = 1024;  // columns that one task takes: a single row serves all threads

void silu_mul(const SiluMul& a) {
  const int64_t stretches = (a.width + kStretch - 1) / kStretch;
  parallel_for(a.rows * stretches, [](const void* context, int64_t unit) {
    const SiluMul& a = *static_cast<const SiluMul*>(context);
    const int64_t stretches = (a.width + kStretch - 1) / kStretch;
    const int64_t column = unit % stretches * kStretch;
    const int64_t begin = unit / stretches * a.width + column;
    const int64_t width = a.width - column < kStretch ? a.width - column : kStretch;
    const float* gate = a.gate + begin;
    const float* up = a.up + begin;
    with_type(a.out_number, [&](auto o) {
      auto* out = static_cast<decltype(o)*>(a.out) + begin;
      each_lanes(width, [&](int64_t i, int64_t count) {
        const Lanes g = load_at(gate + i, count);
        const Lanes silu = g / (broadcast(1.f) + exp(zero() - g));
        store_at(out + i, silu * load_at(up + i, count), count);
      });
    });
  }, &a);
}

// One head: the optional norm, then pairs (i, i + head / 2) turned by the position's angle.
ISOBIT_INLINE void rotate(const Rope& a, const float* x, const void* norm, int64_t row, float* out) {
  float normed[kMaxHead];
  if (norm) {
    with_type(a.norm_number, [&](auto w) {
      normalize(x, static_cast<const decltype(w)*>(norm), a.head, a.eps, normed);
    });
    x = normed;
  }
  const int64_t half = a.head / 2;
  const float* cos = a.cos + a.positions[row] * half;
  const float* sin = a.sin + a.positions[row] * half;
  each_lanes(half, [&](int64_t i, int64_t count) {
    const Lanes c = load_at(cos + i, count), s = load_at(sin + i, count);
    const Lanes low = load_at(x + i, count), high = load_at(x + half + i, count);
    store_at(out + i, fma(low, c, zero() - high * s), count);
    store_at(out + half + i, fma(high, c, low * s), count);
  });
}

// A row's keys and values of one head, and its share of the queries: the units of attention, so that
// a thread finds keys that it wrote itself.
template <class T>
void rope_unit(const Rope& a, int64_t row, int64_t kv_head) {
  float turned[kMaxHead];
  T* out = static_cast<T*>(a.out) + row * a.q_heads * a.head;
  const int64_t end = a.q_heads * (kv_head + 1) / a.kv_heads;
  for (int64_t h = a.q_heads * kv_head / a.kv_heads; h < end; ++h) {
    rotate(a, a.q + (row * a.q_heads + h) * a.head, a.q_norm, row, turned);
    each_lanes(a.head, [&](int64_t i, int64_t count) {
      store_at(out + h * a.head + i, load_at(turned + i, count), count);
    });
  }
  const int64_t page = a.slots[row] / kPage, offset = a.slots[row] % kPage;
  const int64_t plane = (page * a.kv_heads + kv_head) * a.head * kPage;
  const int64_t from = (row * a.kv_heads + kv_head) * a.head;
  rotate(a, a.k + from, a.k_norm, row, turned);
  T* keys = static_cast<T*>(a.keys) + plane + offset;
  for (int64_t i = 0; i < a.head; ++i) keys[i * kPage] = narrow<T>(turned[i]);
  T* values = static_cast<T*>(a.values) + plane + offset * a.head;
  each_lanes(a.head, [&](int64_t i, int64_t count) {
    store_at(values + i, load_at(a.v + from + i, count), count);
  });
}

void rope(const Rope& a) {
  parallel_for(a.rows * a.kv_heads, [](const void* context, int64_t unit) {
    const Rope& a = *static_cast<const Rope*>(context);
    with_type(a.number, [&](auto t) {
      rope_unit<decltype(t)>(a, unit / a.kv_heads, unit % a.kv_heads);
    });
  }, &a);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
