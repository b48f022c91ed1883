#include "linear/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace isobit {
namespace {

// Bits 0 to 3 of every byte, side by side in the lower half.
uint32_t squeeze(uint32_t word) {
  word = (word | word >> 4) & 0x00ff00ff;
  return (word | word >> 8) & 0xffff;
}

// A line of int4 holds k = 0, 2, 4, 6 and then 1, 3, 5, 7.
uint32_t even_then_odd(uint32_t word) {
  return squeeze(word & 0x0f0f0f0f) | squeeze(word >> 4 & 0x0f0f0f0f) << 16;
}

int64_t place_of(int j, int bits) { return bits == 4 ? (j % 2) * 16 + j / 2 * 4 : j * bits; }

bool is_run(const int32_t* values, int count) {
  for (int i = 0; i < count; ++i) {
    if (values[i] != values[0] + i) return false;
  }
  return values[0] >= 0;
}

class Packer {
 public:
  explicit Packer(const Pack& a)
      : a_(a), per_(32 / a.bits), mask_(a.bits == 32 ? ~0u : (1u << a.bits) - 1) {
    whole_.resize(a.lines);
    for (int64_t line = 0; line < a.lines; ++line) {
      const int32_t* columns = a.columns + line * per_;
      whole_[line] = a.along_k ? is_run(columns, per_) && columns[0] % per_ == 0
                               : *std::min_element(columns, columns + per_) >= 0;
    }
  }

  void tile(int64_t tile) {
    rows_ = a_.rows + tile * kTile;
    zeros_ = a_.zeros ? a_.zeros + tile * a_.zeros_stride : nullptr;
    const bool together = is_run(rows_, kTile);
    const bool beside = together && a_.stride_n == 1;
    const bool halves = together && rows_[0] % per_ == 0;
    const bool padded = *std::min_element(rows_, rows_ + kTile) < 0;
    for (int64_t line = 0; line < a_.lines; ++line) {
      uint32_t out[kTile];
      if (!a_.along_k) {
        halves && whole_[line] ? transposed(line, out) : scattered_along_n(line, out);
      } else if (whole_[line]) {
        load(a_.columns[line * per_] / per_, beside, out);
        if (a_.bits == 4) {
          for (uint32_t& word : out) word = even_then_odd(word);
        }
      } else {
        scattered_along_k(line, beside, out);
      }
      if (padded) fill_rows(out);
      if (a_.split) split(out);
      memcpy(a_.out + tile * a_.out_stride + line * kTile, out, sizeof(out));
    }
  }

 private:
  // One word of each row.
  void load(int64_t k_word, bool beside, uint32_t* out) const {
    const uint32_t* from = a_.words + k_word * a_.stride_k;
    if (beside) {
      memcpy(out, from + rows_[0], kTile * sizeof(*out));
      return;
    }
    for (int c = 0; c < kTile; ++c) out[c] = rows_[c] < 0 ? 0 : from[rows_[c] * a_.stride_n];
  }

  uint32_t padding(int64_t line, int c) const {
    if (!zeros_) return a_.fill;
    return std::min<uint32_t>(zeros_[a_.run_of[line] * kTile + c], mask_);
  }

  void scattered_along_k(int64_t line, bool beside, uint32_t* out) const {
    memset(out, 0, kTile * sizeof(*out));
    for (int j = 0; j < per_; ++j) {
      const int32_t column = a_.columns[line * per_ + j];
      const int64_t place = place_of(j, a_.bits);
      if (column < 0) {
        for (int c = 0; c < kTile; ++c) out[c] |= padding(line, c) << place;
        continue;
      }
      uint32_t words[kTile];
      load(column / per_, beside, words);
      const int shift = column % per_ * a_.bits;
      for (int c = 0; c < kTile; ++c) out[c] |= (words[c] >> shift & mask_) << place;
    }
  }

  void scattered_along_n(int64_t line, uint32_t* out) const {
    memset(out, 0, kTile * sizeof(*out));
    for (int j = 0; j < per_; ++j) {
      const int32_t column = a_.columns[line * per_ + j];
      const int64_t place = place_of(j, a_.bits);
      for (int c = 0; c < kTile; ++c) {
        if (rows_[c] < 0) continue;
        const uint32_t code =
            column < 0 ? padding(line, c)
                       : a_.words[column * a_.stride_k + rows_[c] / per_] >>
                                 a_.shifts[rows_[c] % per_] & mask_;
        out[c] |= code << place;
      }
    }
  }

  // Eight k of sixteen n: two 8 x 8 matrices of nibbles, turned over in the halves of 64 bits.
  void transposed(int64_t line, uint32_t* out) const {
    constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (int first = 0; first < kTile; first += 16) {
      uint64_t w[8];
      for (int j = 0; j < 8; ++j) {
        const int64_t column = a_.columns[line * 8 + kOrder[j]];
        memcpy(&w[j], a_.words + column * a_.stride_k + (rows_[0] + first) / 8, sizeof(w[j]));
      }
      swap<4>(w, 0x0000ffff0000ffff);
      swap<2>(w, 0x00ff00ff00ff00ff);
      swap<1>(w, 0x0f0f0f0f0f0f0f0f);
      for (int c = 0; c < 8; ++c) {
        const uint64_t turned = w[a_.shifts[c] / 4];
        out[first + c] = static_cast<uint32_t>(turned);
        out[first + c + 8] = static_cast<uint32_t>(turned >> 32);
      }
    }
  }

  template <int apart>
  static void swap(uint64_t* w, uint64_t mask) {
    for (int i = 0; i < 8; ++i) {
      if (i & apart) continue;
      const uint64_t differ = (w[i] >> 4 * apart ^ w[i + apart]) & mask;
      w[i + apart] ^= differ;
      w[i] ^= differ << 4 * apart;
    }
  }

  static void split(uint32_t* out) {
    uint16_t halves[2 * kTile];
    for (int c = 0; c < kTile; ++c) {
      halves[c] = static_cast<uint16_t>(out[c]);
      halves[c + kTile] = static_cast<uint16_t>(out[c] >> 16);
    }
    memcpy(out, halves, sizeof(halves));
  }

  void fill_rows(uint32_t* out) const {
    uint32_t word = 0;
    for (int j = 0; j < per_; ++j) word |= a_.fill << place_of(j, a_.bits);
    for (int c = 0; c < kTile; ++c) {
      if (rows_[c] < 0) out[c] = word;
    }
  }

  const Pack& a_;
  const int per_;
  const uint32_t mask_;
  std::vector<char> whole_;
  const int32_t* rows_ = nullptr;
  const uint8_t* zeros_ = nullptr;
};

template <class Bits>
bool without(const void* values, Bits exponent, int64_t count) {
  const Bits* bits = static_cast<const Bits*>(values);
  constexpr int64_t kBlock = 1 << 14;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    Bits found = 0;
    for (int64_t i = begin; i < end; ++i) {
      found |= static_cast<Bits>(-static_cast<Bits>((bits[i] & exponent) == exponent));
    }
    if (found) return false;
  }
  return true;
}

}  // namespace

void pack(const Pack& a) {
  Packer packer(a);
  for (int64_t tile = 0; tile < a.tiles; ++tile) packer.tile(tile);
}

bool all_finite(const void* values, Number number, int64_t count) {
  switch (number) {
    case Number::float16: return without<uint16_t>(values, 0x7c00, count);
    case Number::bfloat16: return without<uint16_t>(values, 0x7f80, count);
    case Number::float32: break;
  }
  return without<uint32_t>(values, 0x7f800000, count);
}

}  // namespace isobit
