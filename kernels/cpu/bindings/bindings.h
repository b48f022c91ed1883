// What the files of the binding share. Pointers arrive as integers; Python has checked what they
// point at.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <cstdint>

#include "program/program.h"

namespace isobit {

using Address = uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// As Step.memory has it: six addresses, then four sizes.
using StepMemory = std::array<Address, 10>;

inline Step step_at(const StepMemory& memory) {
  const auto size = [&](int i) { return static_cast<int64_t>(memory[i]); };
  return {at<int64_t>(memory[0]),       at<int32_t>(memory[1]),
          at<int64_t>(memory[2]),       at<const int32_t>(memory[3]),
          at<const int64_t>(memory[4]), at<const int32_t>(memory[5]),
          size(6),                      size(7),
          size(8),                      size(9)};
}

void bind_program(nanobind::module_& m);
void bind_pack(nanobind::module_& m);
void bind_steps(nanobind::module_& m);

}  // namespace isobit
