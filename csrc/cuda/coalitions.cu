// Random coalitions on a GPU: a thread a sample. What a thread draws lies in shared memory, its words `threads` apart so
// that a warp's accesses meet no bank twice; then the block writes its samples out together.

#include "coalitions.h"

#include "launch.h"

namespace loupe {
namespace {

// Samples in turn of the grid's threads; `size` values each, which `draw` leaves at memory[thread + e * threads].
template <class Value, class Out, class Draw>
__device__ void draw_and_write(const SampleCall& call, int size, Value* memory, Out* out, const Draw& draw) {
  const int64_t total = call.problems * call.samples;
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  for (int64_t first = int64_t(blockIdx.x) * threads; first < total; first += int64_t(gridDim.x) * threads) {
    const int64_t s = first + thread;
    if (s < total) draw(s / call.samples, s % call.samples, memory + thread, threads);
    __syncthreads();
    const int64_t here = (total - first < threads ? total - first : threads) * size;
    for (int64_t e = thread; e < here; e += threads) out[first * size + e] = Out(memory[e % size * threads + e / size]);
    __syncthreads();
  }
}

__global__ void coalitions_kernel(SampleCall call, uint64_t* out) {
  LOUPE_DYNAMIC_SHARED(shared);
  draw_and_write(call, call.words(), reinterpret_cast<uint64_t*>(shared), out,
                 [&](int64_t b, int64_t k, uint64_t* words, int step) {
                   Coalition set{words, step};
                   draw_coalition<1>(call, b, k, set);
                 });
}

__global__ void permutations_kernel(SampleCall call, int32_t* out) {
  LOUPE_DYNAMIC_SHARED(shared);
  draw_and_write(call, call.players, reinterpret_cast<uint16_t*>(shared), out,
                 [&](int64_t b, int64_t k, uint16_t* order, int step) { draw_permutation<1>(call, b, k, order, step); });
}

unsigned blocks_for(const SampleCall& call, int threads) {
  const int64_t wanted = (call.problems * call.samples + threads - 1) / threads, most = int64_t(multiprocessors()) * 32;
  return unsigned(wanted < most ? wanted : most);
}

}  // namespace

void sample_coalitions_cuda(const SampleCall& call, uint64_t* out, void* stream) {
  if (call.problems * call.samples * call.words() == 0) return;
  const int threads = 128;
  LOUPE_LAUNCH(coalitions_kernel, blocks_for(call, threads), threads, threads * call.words() * sizeof(uint64_t), stream, call,
               out);
}

void sample_permutations_cuda(const SampleCall& call, int32_t* out, void* stream) {
  if (call.problems * call.samples * call.players == 0) return;
  const int threads = call.players <= 128 ? 128 : call.players <= 512 ? 64 : 32;
  LOUPE_LAUNCH(permutations_kernel, blocks_for(call, threads), threads, threads * call.players * sizeof(uint16_t), stream,
               call, out);
}

}  // namespace loupe
