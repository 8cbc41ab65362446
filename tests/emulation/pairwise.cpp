// Runs csrc/cuda/pairwise.cu on one problem batch read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/pairwise.cu"

#include "memory.h"

int main() {
  int64_t head[8];  // B, M, N, dtype, then 0 or 1: col_scores, region_lengths, phrase_lengths, backward
  double p;
  read(head, sizeof head);
  read(&p, sizeof p);
  const int64_t B = head[0], size = head[3] == 3 ? 8 : head[3] == 2 ? 4 : 2, all = B * head[1] * head[2] * size;
  Memory scores(all), cols(all), regions(B * 8), phrases(B * 8), grad(all), out(all), out_cols(all);
  scores.filled();
  if (head[4]) cols.filled();
  if (head[5]) regions.filled();
  if (head[6]) phrases.filled();
  if (head[7]) grad.filled();
  const loupe::PairwiseCall call{scores.data.get(),
                                 head[4] ? cols.data.get() : nullptr,
                                 head[5] ? reinterpret_cast<int64_t*>(regions.data.get()) : nullptr,
                                 head[6] ? reinterpret_cast<int64_t*>(phrases.data.get()) : nullptr,
                                 B, head[1], head[2], loupe::DType(head[3]), p};
  Memory scratch(loupe::pairwise_scratch_bytes_cuda(call));
  if (head[7])
    loupe::pairwise_backward_cuda(call, grad.data.get(), out.data.get(), head[4] ? out_cols.data.get() : nullptr,
                                  scratch.data.get(), nullptr);
  else
    loupe::pairwise_forward_cuda(call, out.data.get(), scratch.data.get(), nullptr);
  out.write();
  if (head[7] && head[4]) out_cols.write();
}
