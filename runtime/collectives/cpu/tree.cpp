#include "tree.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "machine/host.h"

namespace isobit {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int kDeepest = 16;

// `out` is either apart from both operands or the very same array, never shifted against one.
void add(const float* left, const float* right, float* out, int64_t count) {
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#elif defined(__GNUC__)
#pragma GCC ivdep
#endif
  for (int64_t i = 0; i < count; ++i) out[i] = left[i] + right[i];
}

}  // namespace

// Operands and results are numbered: leaves first, then rows of scratch by depth.
Tree::Tree(Node root, const std::vector<Node>& nodes)
    : leaves_(static_cast<int>(nodes.size())) {
  int64_t next = root.first;
  for (const Node& node : nodes) {
    if (node.first != next)
      throw std::invalid_argument("atom " + std::to_string(next) + " is owned by no rank");
    next += node.second;
  }
  if (next != root.first + root.second)
    throw std::invalid_argument("the nodes do not cover every atom");
  build(nodes, root, 0);
}

int Tree::build(const std::vector<Node>& nodes, Node node, int depth) {
  const auto found = std::find(nodes.begin(), nodes.end(), node);
  if (found != nodes.end()) return static_cast<int>(found - nodes.begin());
  const int64_t half = node.second / 2;
  if (!half || depth == kDeepest) throw std::invalid_argument("a node is no complete subtree");
  const int left = build(nodes, {node.first, half}, depth);
  const int right = build(nodes, {node.first + half, half}, depth + 1);
  steps_.push_back({left, right, leaves_ + depth});
  scratch_ = std::max(scratch_, depth + 1);
  return leaves_ + depth;
}

void Tree::reduce(const float* const* leaves, float* out, int64_t count) const {
  if (steps_.empty()) {
    if (out != leaves[0]) std::memmove(out, leaves[0], count * sizeof(float));
    return;
  }
  const FloatMode mode;
  alignas(64) float scratch[kDeepest + 1][kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t length = std::min(kBlock, count - begin);
    const auto operand = [&](int number) {
      return number < leaves_ ? leaves[number] + begin : scratch[number - leaves_];
    };
    for (size_t i = 0; i + 1 < steps_.size(); ++i) {
      const Step& step = steps_[i];
      add(operand(step.left), operand(step.right), scratch[step.out - leaves_], length);
    }
    add(operand(steps_.back().left), operand(steps_.back().right), out + begin, length);
  }
}

}  // namespace isobit
