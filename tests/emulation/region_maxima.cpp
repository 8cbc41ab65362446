// Runs csrc/cuda/region_maxima.cu on one call read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/region_maxima.cu"

#include "memory.h"

int main() {
  int64_t x[5];  // B, R, N, n, dtype
  read(x, sizeof x);
  const int64_t B = x[0], R = x[1], N = x[2], n = x[3], size = x[4] == 3 ? 8 : 4;
  Memory scores(B * N * n * size), order(B * N * n * 8), regions(B * R * ((n + 63) / 64) * 8), slopes((n + 1) * size);
  Memory lengths(B * 8), out(B * R * size);
  for (Memory* input : {&scores, &order, &regions, &slopes, &lengths}) input->filled();
  const loupe::MaximaCall call{scores.data.get(), order.as<int64_t>(), regions.as<uint64_t>(), slopes.data.get(),
                               lengths.as<int64_t>(), B, R, N, int(n), loupe::DType(x[4])};
  loupe::region_maxima_cuda(call, out.data.get(), nullptr);
  out.write();
}
