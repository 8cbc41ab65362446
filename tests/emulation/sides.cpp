// Runs csrc/cuda/sides.cu on one problem batch read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/sides.cu"

#include "memory.h"

int main() {
  int64_t head[10];  // B, M, N, dtype, game, order, then 0 or 1: col_scores, region_lengths, phrase_lengths, backward
  double p;
  read(head, sizeof head);
  read(&p, sizeof p);
  const int64_t B = head[0], M = head[1], N = head[2], size = head[3] == 3 ? 8 : head[3] == 2 ? 4 : 2;
  const int order = int(head[5]);
  const int64_t all = B * M * N * size;
  Memory scores(all), cols(all), lengths_of_regions(B * 8), lengths_of_phrases(B * 8), out(all), out_cols(all);
  Memory regions(B * (order == 1 ? M : M * M) * size), phrases(B * (order == 1 ? N : N * N) * size);
  scores.filled();
  if (head[6]) cols.filled();
  if (head[7]) lengths_of_regions.filled();
  if (head[8]) lengths_of_phrases.filled();
  if (head[9]) regions.filled();
  if (head[9]) phrases.filled();
  const loupe::PairwiseCall call{scores.data.get(),
                                 head[6] ? cols.data.get() : nullptr,
                                 head[7] ? reinterpret_cast<int64_t*>(lengths_of_regions.data.get()) : nullptr,
                                 head[8] ? reinterpret_cast<int64_t*>(lengths_of_phrases.data.get()) : nullptr,
                                 B, M, N, loupe::DType(head[3]), p, loupe::Game(head[4])};
  Memory scratch(loupe::sides_scratch_bytes_cuda(call, order, head[9] != 0));
  if (head[9]) {
    loupe::sides_backward_cuda(call, order, regions.data.get(), phrases.data.get(), out.data.get(),
                               head[6] ? out_cols.data.get() : nullptr, scratch.data.get(), nullptr);
    out.write();
    if (head[6]) out_cols.write();
  } else {
    loupe::sides_forward_cuda(call, order, regions.data.get(), phrases.data.get(), scratch.data.get(), nullptr);
    regions.write();
    phrases.write();
  }
}
