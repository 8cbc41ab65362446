// Runs csrc/cuda/region.cu on one call read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/region.cu"

#include "memory.h"

int main() {
  int64_t x[6];  // B, R, K, n, prefixes, dtype
  read(x, sizeof x);
  const int64_t B = x[0], R = x[1], K = x[2], n = x[3], size = x[5] == 3 ? 8 : 4;
  Memory values(B * n * size), gram(B * n * n * size), regions(B * R * ((n + 63) / 64) * 8), orders(B * K * n * 4);
  Memory out(B * R * K * size);
  for (Memory* input : {&values, &gram, &regions, &orders}) input->filled();
  const loupe::RegionCall call{values.data.get(), gram.data.get(), regions.as<uint64_t>(), orders.as<int32_t>(), B, R, K,
                               int(n), x[4] != 0, loupe::DType(x[5])};
  Memory scratch(loupe::region_scratch_bytes_cuda(call));
  loupe::region_walks_cuda(call, out.data.get(), scratch.data.get(), nullptr);
  out.write();
}
