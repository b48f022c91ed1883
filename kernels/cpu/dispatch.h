// Which instruction set runs, chosen once per process from what the machine has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace isobit {

std::vector<std::string> available_sets();  // widest first
const std::string& current_set();
bool select_set(const std::string& name);  // false: this machine lacks it
bool uses_vnni();  // whether the current set sums int8 products with vpdpbusd

const Kernels& kernels();

// Computes in registers as the widest linear kernel would; returns the number of operations.
int64_t run_peak(int64_t rounds, int64_t tasks, float* sums);

// A weight with all that its product needs but the rows.
struct Weight {
  Linear linear;
  int64_t k;
  const int32_t* gather;  // null: the identity
  bool quantize;          // activations become int8 codes
  float input_scale;      // see Quantize
};

struct LinearCall {
  const Weight* weight;
  const void* x;  // [rows, k]
  Number number;
  const int32_t* merges;  // see Linear
  const float* bias;
  float* out;
  int64_t out_width;
};

constexpr int kMostTogether = 4;

// At most kMostTogether products of the same rows, side by side in one pass of the pool: gathers,
// converts or quantizes the activations as each chosen kernel wants them, then multiplies.
void run_linears(const LinearCall* calls, int count, int64_t rows);

}  // namespace isobit
