// Whether another process of this host still lives.
#pragma once

#include <cstdint>

namespace isobit {

// When a process began, in a unit of the system's; 0 when it is gone, a zombie, or cannot be seen.
// Together with the number it names one process for ever: numbers are used again.
uint64_t process_start(int64_t pid);

}  // namespace isobit
