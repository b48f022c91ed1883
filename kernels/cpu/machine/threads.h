// A small pool of threads. A task's number decides what it computes, never which thread runs it.
#pragma once

#include <cstdint>

namespace isobit {

using Task = void (*)(const void* context, int64_t index);

// Runs task(context, i) for every i in [0, count). A nested or concurrent call runs inline.
void parallel_for(int64_t count, Task task, const void* context);

void set_threads(int count);
int threads();

}  // namespace isobit
