// Causal attention over a paged cache. Each query walks its own keys, page by page in order, with
// an online softmax; several queries share a walk only to read each key from memory once.
#pragma once

#include "ops/rows.h"

namespace isobit {
namespace ISOBIT_SET {
namespace {

constexpr int kQueries = 16;  // queries that walk together
constexpr int kKeyLanes = kPage / kLanes;
constexpr int kTogether = kWidth == 16 ? 4 : 2;  // queries in registers at a time
constexpr int kAcross = kWidth == 16 ? 4 : kWidth == 8 ? 2 : 1;  // and lanes of each

struct Query {
  float q[kMaxHead];
  float sum[kMaxHead];
  float score[kPage];
  float top;
  float weight;
  int64_t row;
  int64_t head;
  int64_t begin;  // first key it may see
  int64_t end;
};

// How much of the page is this query's own.
struct Span {
  int begin;
  int end;
};
ISOBIT_INLINE Span span(const Query& query, int64_t page) {
  const int64_t begin = query.begin - page * kPage, end = query.end - page * kPage;
  return {static_cast<int>(begin < 0 ? 0 : begin), static_cast<int>(end < kPage ? end : kPage)};
}

// Pages lie anywhere in memory, so that the machine cannot guess which one is next: it is asked for
// while the one before is worked on. Null: nothing follows.
template <class T>
ISOBIT_INLINE void fetch(const T* plane, int64_t from, int64_t count) {
  if (!plane) return;
  const char* bytes = reinterpret_cast<const char*>(plane + from);
  for (int64_t at = 0; at < count * static_cast<int64_t>(sizeof(T)); at += 64)
    __builtin_prefetch(bytes + at);
}

template <class T, int Q>
void score(Query* query, const T* keys, const T* next, int64_t head) {
  for (int first = 0; first < kKeyLanes; first += kAcross) {
    Lanes dot[Q][kAcross];
    _Pragma("GCC unroll 4") for (int m = 0; m < Q; ++m)
      _Pragma("GCC unroll 4") for (int j = 0; j < kAcross; ++j) dot[m][j] = zero();
    for (int64_t d = 0; d < head; ++d) {
      if (first == 0) fetch(next, d * kPage, kPage);
      _Pragma("GCC unroll 4") for (int j = 0; j < kAcross; ++j) {
        const Lanes key = load(keys + d * kPage + (first + j) * kLanes);
        _Pragma("GCC unroll 4") for (int m = 0; m < Q; ++m)
          dot[m][j] = fma(broadcast(query[m].q[d]), key, dot[m][j]);
      }
    }
    _Pragma("GCC unroll 4") for (int m = 0; m < Q; ++m)
      _Pragma("GCC unroll 4") for (int j = 0; j < kAcross; ++j)
        store(query[m].score + (first + j) * kLanes, dot[m][j]);
  }
}

// Turns scores into weights. Lanes outside the span hold another row's keys or nothing at all:
// they are replaced before any arithmetic reads them.
ISOBIT_INLINE void soften(Query& query, Span own, float scale, int64_t head) {
  static const float kIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Lanes lowest = broadcast(-__builtin_inff());
  Lanes value[kKeyLanes];
  Ints above[kKeyLanes], below[kKeyLanes];
  Lanes top = lowest;
  for (int j = 0; j < kKeyLanes; ++j) {
    const Lanes index = load(kIndex) + broadcast(static_cast<float>(j * kLanes));
    above[j] = index > broadcast(own.begin - .5f);
    below[j] = broadcast(own.end - .5f) > index;
    value[j] = load(query.score + j * kLanes) * broadcast(scale);
    value[j] = select(above[j], select(below[j], value[j], lowest), lowest);
    top = select(value[j] > top, value[j], top);
  }
  const float highest = largest(top);
  const float now = query.top > highest ? query.top : highest;
  for (int j = 0; j < kKeyLanes; ++j) {
    value[j] = exp(value[j] - broadcast(now));
    value[j] = select(above[j], select(below[j], value[j], zero()), zero());
    store(query.score + j * kLanes, value[j]);
  }
  const Lanes fade = exp(broadcast(query.top - now));
  float factor[kLanes];
  store(factor, fade);
  query.weight = query.weight * factor[0] + sum((value[0] + value[1]) + (value[2] + value[3]));
  query.top = now;
  if (factor[0] != 1.f) {
    each_lanes(head, [&](int64_t d, int64_t count) {
      store_at(query.sum + d, load_at(query.sum + d, count) * fade, count);
    });
  }
}

template <class T, int Q, int N>
ISOBIT_INLINE void gather_lanes(Query* query, Span own, const T* values, const T* next,
                                int64_t head, int64_t d, int64_t count) {
  Lanes sum[Q][N];
  _Pragma("GCC unroll 4") for (int m = 0; m < Q; ++m)
    _Pragma("GCC unroll 4") for (int j = 0; j < N; ++j)
      sum[m][j] = load_at(query[m].sum + d + j * kLanes, count);
  for (int key = own.begin; key < own.end; ++key) {
    if (d == 0) fetch(next, key * head, head);
    _Pragma("GCC unroll 4") for (int j = 0; j < N; ++j) {
      const Lanes value = load_at(values + key * head + d + j * kLanes, count);
      _Pragma("GCC unroll 4") for (int m = 0; m < Q; ++m)
        sum[m][j] = fma(broadcast(query[m].score[key]), value, sum[m][j]);
    }
  }
  _Pragma("GCC unroll 4") for (int m = 0; m < Q; ++m)
    _Pragma("GCC unroll 4") for (int j = 0; j < N; ++j)
      store_at(query[m].sum + d + j * kLanes, sum[m][j], count);
}

template <class T, int Q>
void gather(Query* query, Span own, const T* values, const T* next, int64_t head) {
  int64_t d = 0;
  for (; d + kAcross * kLanes <= head; d += kAcross * kLanes)
    gather_lanes<T, Q, kAcross>(query, own, values, next, head, d, kLanes);
  for (; d < head; d += kLanes)
    gather_lanes<T, Q, 1>(query, own, values, next, head, d,
                          head - d < kLanes ? head - d : kLanes);
}

template <int N>
struct Count {
  constexpr operator int() const { return N; }
};

// Calls op with the compile-time form of min(count, Most).
template <int Most, class Op>
ISOBIT_INLINE void together(int count, Op op) {
  if (count >= Most) return op(Count<Most>{});
  if constexpr (Most > 1) together<Most - 1>(count, op);
}

// One page for all queries that walk together; the keys of the page that comes next, or null.
template <class T>
void visit(const Attention& a, Query* query, int count, int64_t page, const T* keys,
           const T* values, const T* next) {
  for (int first = 0; first < count; first += kTogether) {
    const T* ahead = first == 0 ? values : nullptr;
    together<kTogether>(count - first,
                        [&](auto q) { score<T, q>(query + first, keys, ahead, a.head); });
  }
  for (int m = 0; m < count; ++m) {
    const Span own = span(query[m], page);
    if (own.begin < own.end) soften(query[m], own, a.scale, a.head);
  }
  for (int first = 0; first < count; first += kTogether) {
    const int batch = count - first < kTogether ? count - first : kTogether;
    const T* ahead = first == 0 ? next : nullptr;
    bool whole = true;
    for (int m = first; m < first + batch; ++m) {
      const Span own = span(query[m], page);
      whole = whole && own.begin == 0 && own.end == kPage;
    }
    if (whole) {
      together<kTogether>(batch, [&](auto q) {
        gather<T, q>(query + first, {0, kPage}, values, ahead, a.head);
      });
      continue;
    }
    for (int m = first; m < first + batch; ++m) {
      const Span own = span(query[m], page);
      if (own.begin < own.end) gather<T, 1>(query + m, own, values, nullptr, a.head);
    }
  }
}

template <class T>
void walk(const Attention& a, Query* query, int count, int64_t kv_head) {
  int64_t first = query[0].begin / kPage, last = 0;
  for (int m = 0; m < count; ++m) {
    Query& one = query[m];
    const T* q = static_cast<const T*>(a.q) + (one.row * a.q_heads + one.head) * a.head;
    for (int64_t d = 0; d < a.head; ++d) {
      one.q[d] = widen(q[d]);
      one.sum[d] = 0.f;
    }
    one.top = -__builtin_inff();
    one.weight = 0.f;
    first = one.begin / kPage < first ? one.begin / kPage : first;
    last = (one.end - 1) / kPage > last ? (one.end - 1) / kPage : last;
  }
  const int32_t* table = a.block_tables + a.row_sequence[query[0].row] * a.max_pages;
  const auto plane = [&](int64_t page) {
    return (table[page] * a.kv_heads + kv_head) * a.head * kPage;
  };
  const T *keys = static_cast<const T*>(a.keys), *values = static_cast<const T*>(a.values);
  for (int64_t page = first; page <= last; ++page) {
    visit(a, query, count, page, keys + plane(page), values + plane(page),
          page < last ? keys + plane(page + 1) : nullptr);
  }
  for (int m = 0; m < count; ++m) {
    T* out = static_cast<T*>(a.out) + (query[m].row * a.q_heads + query[m].head) * a.head;
    each_lanes(a.head, [&](int64_t d, int64_t lanes) {
      store_at(out + d, load_at(query[m].sum + d, lanes) / broadcast(query[m].weight), lanes);
    });
  }
}

template <class T>
void attend(const Attention& a, int64_t unit) {
  const int64_t chunk = unit / a.kv_heads, kv_head = unit % a.kv_heads;
  Query query[kQueries];
  int count = 0;
  for (int64_t row = a.chunks[chunk]; row < a.chunks[chunk + 1]; ++row) {
    for (int64_t head = 0; head < a.q_heads; ++head) {
      if (a.head_to_kv[head] != kv_head) continue;
      Query& one = query[count++];
      one.row = row;
      one.head = head;
      one.end = static_cast<int64_t>(a.positions[row]) + 1;
      one.begin = a.window && one.end > a.window ? one.end - a.window : 0;
      if (count == kQueries) {
        walk<T>(a, query, count, kv_head);
        count = 0;
      }
    }
  }
  if (count) walk<T>(a, query, count, kv_head);
}

void attention(const Attention& a) {
  parallel_for(a.chunk_count * a.kv_heads, [](const void* context, int64_t unit) {
    const Attention& a = *static_cast<const Attention*>(context);
    with_type(a.number, [&](auto t) { attend<decltype(t)>(a, unit); });
  }, &a);
}

}  // namespace
}  // namespace ISOBIT_SET
}  // namespace isobit
