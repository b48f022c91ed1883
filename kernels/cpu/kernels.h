// What crosses the border between the binding and the code built per instruction set.
// Only plain structs and function pointers: a template used on both sides could be merged by the
// linker into the copy built with the wider instructions.
#pragma once

#include <cstdint>

namespace isobit {

enum class Number : int { float32 = 0, float16 = 1, bfloat16 = 2 };
enum class Kind : int { int4 = 0, int8 = 1, bfloat16 = 2, float16 = 3, float32 = 4 };

constexpr int kLanes = 16;            // columns of a strip: one vector of outputs
constexpr int kStrips = 4;             // of a tile, side by side in every line
constexpr int kTile = kLanes * kStrips;
constexpr int kPage = 64;
constexpr int kMaxHead = 512;
constexpr int kMaxNodes = 16;  // sums of segments that wait for their neighbours

struct Linear {
  const void* x;  // [rows, packed_k]: fp32, bf16 for the dot-product kernels, or codes (Quantize)
  int64_t rows;
  int64_t packed_k;
  Kind kind;
  const unsigned char* data;
  const void* scales;  // [tiles, runs, 64], or null
  Number scale_number;
  const uint8_t* zeros;  // [tiles, runs, 64], or null
  int64_t runs;
  int64_t n;
  const int32_t* run_offsets;
  const int32_t* segment_offsets;
  int64_t segments;
  // How many sums of two neighbours follow each segment: a postfix walk of the tree. Null: none.
  const int32_t* merges;
  const float* bias;   // [n], or null
  float* out;          // [segments, rows, out_width]; with merges only what they leave of segments
  int64_t out_width;   // at least n
  const float* x_scales = nullptr;       // of codes, [segments, rows]
  const int32_t* corrections = nullptr;  // [segments, rows]: -128 times the sum of a row's codes
};

// One of the products that a pool works on together: unit i is task(&linear, i).
struct Product {
  Linear linear;
  void (*task)(const void* linear, int64_t unit) = nullptr;
  int64_t units = 0;
};

struct Gather {
  const void* x;  // [rows, k]
  Number number;
  int64_t rows;
  int64_t k;
  const int32_t* index;  // [packed_k], or null for the identity
  int64_t packed_k;
  void* out;  // [rows, packed_k], fp32 or the bits of x
};

// How the codes of activations lie in memory: bytes, or 16 bits each in the order k = 0, 2, 1, 3.
enum class Codes : int { bytes = 0, pairs = 1 };

struct Quantize {
  const void* x;  // [rows, packed_k]
  Number number;
  int64_t rows;
  int64_t packed_k;
  const int32_t* run_offsets;
  const int32_t* segment_offsets;  // a segment is one run or none
  int64_t segments;
  float input_scale;  // 0: one scale per row and segment, from its largest magnitude
  Codes form;
  void* codes;           // [rows, packed_k]
  float* scales;         // [segments, rows]; NaN where an activation is not finite
  int32_t* corrections;  // [segments, rows]
};

struct RmsNorm {
  float* x;           // [rows, width]
  float* add;         // [rows, width], or null: becomes add + bias, and x becomes x + add
  const float* bias;  // [width], or null
  const void* weight;
  Number weight_number;
  float eps;
  int64_t rows;
  int64_t width;
  void* out;
  Number out_number;
};

struct SiluMul {
  const float* gate;  // [rows, width]
  const float* up;
  int64_t rows;
  int64_t width;
  void* out;
  Number out_number;
};

struct Rope {
  const float* q;  // [rows, q_heads * head]
  const float* k;  // [rows, kv_heads * head]
  const float* v;
  const float* cos;  // [positions, head / 2]
  const float* sin;
  const int32_t* positions;
  const int64_t* slots;
  const void* q_norm;  // [head], or null
  const void* k_norm;
  Number norm_number;
  float eps;
  int64_t rows;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t head;
  void* keys;    // [pages, kv_heads, head, 64]
  void* values;  // [pages, kv_heads, 64, head]
  void* out;     // [rows, q_heads, head]
  Number number;
};

struct Attention {
  const void* q;  // [rows, q_heads, head]
  const void* keys;
  const void* values;
  Number number;
  const int32_t* block_tables;  // [sequences, max_pages]
  int64_t max_pages;
  const int32_t* row_sequence;
  const int32_t* positions;
  const int32_t* head_to_kv;
  float scale;
  int64_t window;
  int64_t rows;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t head;
  const int64_t* chunks;  // [chunk_count + 1]: rows of one chunk share a sequence
  int64_t chunk_count;
  void* out;  // [rows, q_heads * head]
};

// Sums 32-bit words of memory as fast as they come: a measure of what the machine can read.
struct Read {
  const void* from;
  int64_t bytes;   // a multiple of kReadUnit
  uint32_t* sums;  // [bytes / kReadUnit]
};
constexpr int64_t kReadUnit = 1 << 18;

// Multiplies and adds in registers for a while: a measure of what the machine can compute.
struct Peak {
  int64_t rounds;
  float* sums;  // [tasks]
};

struct Greatest {
  const float* x;  // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t* index;  // [rows]: the first of the greatest; -1 for a row with a NaN or an infinity
};

struct Kernels {
  void (*linear)(Product&);       // chooses task and units
  void (*linear_int8)(Product&);  // takes Codes::pairs
  void (*quantize)(const Quantize&);
  void (*widen)(const Gather&);  // to fp32
  void (*rms_norm)(const RmsNorm&);
  void (*silu_mul)(const SiluMul&);
  void (*rope)(const Rope&);
  void (*attention)(const Attention&);
  void (*greatest)(const Greatest&);
  void (*read)(const Read&);
  int64_t (*peak)(const Peak&, int64_t tasks);  // returns the operations of a round
  uint64_t (*digest)(const void* data, int64_t bytes, uint64_t seed);
};

namespace baseline { extern const Kernels kernels; }
#ifdef ISOBIT_X86
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512_bf16 {
void linear(Product&);
int64_t peak(const Peak&, int64_t tasks);
}
namespace avx512_vnni { void linear_int8(Product&); }  // takes Codes::bytes
#endif

}  // namespace isobit
