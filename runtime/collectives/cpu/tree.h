// The one tree of additions, finished from the complete subtrees of all ranks.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace isobit {

using Node = std::pair<int64_t, int64_t>;  // first atom, number of atoms

// A balanced binary tree over `atoms` atoms whose leaves are `nodes`, in the order of their atoms.
class Tree {
 public:
  // Throws std::invalid_argument when the nodes do not cover every atom once.
  Tree(int64_t atoms, const std::vector<Node>& nodes);

  // out[i] = the root over leaves[l][i], for i < count. `out` may be one of the leaves.
  void reduce(const float* const* leaves, float* out, int64_t count) const;

 private:
  struct Step {
    int left, right, out;
  };
  int build(const std::vector<Node>& nodes, Node node, int depth);

  std::vector<Step> steps_;
  int leaves_;
  int scratch_ = 0;
};

}  // namespace isobit
