// Random coalitions on the CPU. Every sample is drawn from its own counter, so threads need not agree on anything; the
// second of an antithetic pair is turned over from the first where that is at hand. Compiled once per SIMD target.

#include "coalitions.h"

#include <algorithm>

#include "parallel.h"

namespace loupe::LOUPE_TARGET {
namespace {

constexpr int kBlock = 4;  // counters side by side in SIMD registers

// Calls draw(b, k, s) or, for the second of a pair whose first it has just drawn, turn(s); s counts all samples.
template <class Draw, class Turn>
void for_each_sample(const SampleCall& call, int threads, const Draw& draw, const Turn& turn) {
  constexpr int64_t kChunk = 512;  // samples that pay for a thread
  parallel_chunks(call.problems * call.samples, kChunk, threads, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        const int64_t b = s / call.samples, k = s % call.samples;
        const bool second = call.antithetic && (call.first_sample + k) % 2 == 1;
        if (second && k > 0 && s > begin) turn(s);
        else draw(b, k, s);
      }
    };
  });
}

}  // namespace

void sample_coalitions(const SampleCall& call, uint64_t* out, int threads) {
  const int words = call.words();
  const auto draw = [&](int64_t b, int64_t k, int64_t s) {
    if (words == 1) {
      SmallCoalition set;
      draw_coalition<kBlock>(call, b, k, set);
      out[s] = set.bits;
    } else {
      Coalition set{out + s * words};
      draw_coalition<kBlock>(call, b, k, set);
    }
  };
  const auto turn = [&](int64_t s) {
    for (int w = 0; w < words; ++w) out[s * words + w] = out[(s - 1) * words + w] ^ everyone(call.players, w);
  };
  if (call.turns_over()) for_each_sample(call, threads, draw, turn);
  else for_each_sample(call, threads, draw, [&](int64_t s) { draw(s / call.samples, s % call.samples, s); });
}

void sample_permutations(const SampleCall& call, int32_t* out, int threads) {
  const int n = call.players;
  for_each_sample(
      call, threads, [&](int64_t b, int64_t k, int64_t s) { draw_permutation<kBlock>(call, b, k, out + s * n, 1); },
      [&](int64_t s) { std::reverse_copy(out + (s - 1) * n, out + s * n, out + s * n); });
}

}  // namespace loupe::LOUPE_TARGET
