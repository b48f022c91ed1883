// Which instruction set runs, chosen once per process from what the machine has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace isobit {

std::vector<std::string> available_sets();  // widest first
const std::string& current_set();
bool select_set(const std::string& name);  // false: this machine lacks it

const Kernels& kernels();

// Gathers and converts the activations as the chosen kernel wants them, then multiplies.
void run_linear(Linear job, Gather activations);

}  // namespace isobit
