// What the files of the binding share. Pointers arrive as integers; Python has checked what they
// point at.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "program.h"

namespace isobit {

using Address = uintptr_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_program(nanobind::module_& m);
void bind_pack(nanobind::module_& m);
void bind_steps(nanobind::module_& m);

}  // namespace isobit
