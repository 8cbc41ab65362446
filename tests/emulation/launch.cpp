// What csrc/cuda/launch.h asks of CUDA's runtime, launch by launch.
#define __CUDACC__
#define __align__(bytes)
#include "../../csrc/cuda/launch.h"

void first(int, const double*) {}
void second(int, const double*) {}

int main() {
  double x = 1.5;
  const auto step = [&](const char* name, void (*kernel)(int, const double*), int64_t bytes) {
    std::printf("# %s\n", name);
    LOUPE_LAUNCH(kernel, 7u, 32u, bytes, nullptr, 3, &x);
  };
  for (const char* name : {"new", "again"}) {
    std::printf("# %s\n", name);
    std::printf("%d %d\n", loupe::multiprocessors(), loupe::max_shared_bytes());
  }
  step("none", first, 0);
  step("some", first, 500);
  step("again", first, 500);
  step("less", first, 400);
  step("more", first, 600);
  step("another kernel", second, 500);
  current_index = 1;
  step("another device", first, 500);
  current_index = 0;
  step("and back", first, 600);
  try {
    step("too much", first, 5000);
  } catch (const std::runtime_error& error) {
    std::printf("%s; left: %d\n", error.what(), int(cudaGetLastError()));
  }
  step("as before", first, 600);
}
