// Runs csrc/cuda/moments.cu on one call read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/moments.cu"

#include "memory.h"

int main() {
  int64_t head[7];  // C, S, G, n, dtype, then 0 or 1: offsets, backward
  read(head, sizeof head);
  const int64_t C = head[0], S = head[1], G = head[2], n = head[3], size = head[4] == 3 ? 8 : head[4] == 2 ? 4 : 2;
  Memory coalitions(S * ((n + 63) / 64) * 8), offsets((G + 1) * 8), values(C * S * size), moments(C * G * n * n * size);
  coalitions.filled();
  if (head[5]) offsets.filled();
  const loupe::MomentsCall call{coalitions.as<uint64_t>(), head[5] ? offsets.as<int64_t>() : nullptr, C, S, G, int(n),
                                loupe::DType(head[4])};
  if (head[6]) {
    loupe::moments_backward_cuda(call, moments.filled().data.get(), values.data.get(), nullptr);
    values.write();
  } else {
    Memory scratch(loupe::moments_scratch_bytes_cuda(call));
    loupe::moments_forward_cuda(call, values.filled().data.get(), moments.data.get(), scratch.data.get(), nullptr);
    moments.write();
  }
}
