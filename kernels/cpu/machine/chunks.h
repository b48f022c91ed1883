// How the rows of a step are cut into blocks for attention.
#pragma once

#include <cstdint>
#include <vector>

namespace isobit {

// Rows of one sequence that stand together share the reading of its keys; a chunk holds few enough
// of them that the queries of one KV head walk as one block.
inline std::vector<int64_t> chunks_of(const int32_t* sequence, int64_t rows, int64_t heads_per_kv) {
  const int64_t most = heads_per_kv < 16 ? 16 / heads_per_kv : 1;
  std::vector<int64_t> chunks = {0};
  for (int64_t row = 1; row <= rows; ++row) {
    if (row == rows || sequence[row] != sequence[row - 1] || row - chunks.back() == most)
      chunks.push_back(row);
  }
  return chunks;
}

}  // namespace isobit
