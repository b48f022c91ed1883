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

// Gathers and converts the activations as the chosen kernel wants them, then multiplies.
void run_linear(Linear job, Gather activations);

// Quantizes the activations to int8, then sums integers. input_scale: see Quantize.
void run_linear_int8(Linear job, Gather activations, float input_scale);

}  // namespace isobit
