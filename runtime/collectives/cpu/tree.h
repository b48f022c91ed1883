// The one tree of additions, or a part of it, finished from the complete subtrees of several ranks.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace isobit {

using Node = std::pair<int64_t, int64_t>;  // first atom, number of atoms

// The balanced binary tree over the atoms of `root` whose leaves are `nodes`, in the order of atoms.
class Tree {
 public:
  // Throws std::invalid_argument when the nodes do not cover every atom of the root once.
  Tree(Node root, const std::vector<Node>& nodes);

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
