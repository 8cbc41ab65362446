// Runs csrc/cuda/maxsim_credit.cu on one problem batch read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/maxsim_credit.cu"

#include "memory.h"

int main() {
  int64_t head[7];  // B, M, N, dtype, then 0 or 1: document_lengths, query_lengths, backward
  double p;
  read(head, sizeof head);
  read(&p, sizeof p);
  const int64_t B = head[0], M = head[1], N = head[2], all = B * M * N * (head[3] == 3 ? 8 : head[3] == 2 ? 4 : 2);
  Memory scores(all), documents(B * 8), queries(B * 8), grad(all), out(all);
  scores.filled();
  if (head[4]) documents.filled();
  if (head[5]) queries.filled();
  if (head[6]) grad.filled();
  const loupe::PairwiseCall call{scores.data.get(),
                                 nullptr,
                                 head[4] ? reinterpret_cast<int64_t*>(documents.data.get()) : nullptr,
                                 head[5] ? reinterpret_cast<int64_t*>(queries.data.get()) : nullptr,
                                 B, M, N, loupe::DType(head[3]), p, loupe::Game::maxsim};
  Memory scratch(loupe::credit_scratch_bytes_cuda(call, head[6] != 0));
  if (head[6]) loupe::credit_backward_cuda(call, grad.data.get(), out.data.get(), scratch.data.get(), nullptr);
  else loupe::credit_forward_cuda(call, out.data.get(), scratch.data.get(), nullptr);
  out.write();
}
