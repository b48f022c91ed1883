#include "process.h"

#include <cstdio>
#include <cstring>
#include <string>

namespace isobit {

uint64_t process_start(int64_t pid) {
  std::FILE* file = std::fopen(("/proc/" + std::to_string(pid) + "/stat").c_str(), "r");
  if (!file) return 0;
  char text[1024];
  const size_t read = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  text[read] = 0;
  // The second field is the name in brackets and may hold anything; the state follows the last one.
  const char* end = std::strrchr(text, ')');
  if (!end) return 0;
  char state = 0;
  unsigned long long started = 0;
  const int found = std::sscanf(
      end + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
      &state, &started);
  return found == 2 && state != 'Z' && state != 'X' ? started : 0;
}

}  // namespace isobit
