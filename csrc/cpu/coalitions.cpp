// Random coalitions on the CPU. Every sample is drawn from its own counter, so threads need not agree on anything.

#include "coalitions.h"

#include "parallel.h"

namespace loupe {
namespace {

// Calls draw(problem, sample) for all of them.
template <class Draw>
void for_each_sample(const SampleCall& call, int threads, const Draw& draw) {
  constexpr int64_t kChunk = 512;  // samples that pay for a thread
  parallel_chunks(call.problems * call.samples, kChunk, threads, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) draw(s / call.samples, s % call.samples);
    };
  });
}

}  // namespace

void sample_coalitions_cpu(const SampleCall& call, uint64_t* out, int threads) {
  for_each_sample(call, threads, [&](int64_t b, int64_t k) {
    draw_coalition(call, b, k, {out + (b * call.samples + k) * call.words(), 1});
  });
}

void sample_permutations_cpu(const SampleCall& call, int32_t* out, int threads) {
  for_each_sample(call, threads, [&](int64_t b, int64_t k) {
    draw_permutation(call, b, k, out + (b * call.samples + k) * call.players, 1);
  });
}

}  // namespace loupe
