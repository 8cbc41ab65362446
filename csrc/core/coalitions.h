// Random coalitions and permutations from counters: those of python_ref/coalitions.py, bit for bit; host and device.
#pragma once

#include "philox.h"

namespace loupe {

// One call: sample `first_sample + k` of problem `first_problem + b` for k < samples, b < problems.
struct SampleCall {
  int64_t problems, samples, first_problem, first_sample;
  uint64_t seed;
  int players;
  bool antithetic;
  // Coalitions only. threshold > 0: every player with probability threshold / 2^32; 0: a uniform subset, of a size that is
  // uniform too or, stratified, goes round.
  bool stratified;
  uint32_t threshold;

  LOUPE_INLINE_HD int words() const { return (players + 63) / 64; }  // of 64 bits, a coalition
};

LOUPE_INLINE_HD uint64_t everyone(int players, int word) {
  const int left = players - 64 * word;
  return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
}

// A coalition under construction: bit i % 64 of word i / 64 is player i. In memory, the words `step` apart ..
struct Coalition {
  uint64_t* words;
  int64_t step;

  LOUPE_INLINE_HD uint64_t& word(int w) const { return words[w * step]; }
  LOUPE_INLINE_HD bool has(uint32_t i) const { return word(int(i / 64)) >> (i % 64) & 1; }
  LOUPE_INLINE_HD void add(uint32_t i) const { word(int(i / 64)) |= uint64_t(1) << (i % 64); }
};

// .. or, of up to 64 players, in a register.
struct SmallCoalition {
  uint64_t bits = 0;

  LOUPE_INLINE_HD uint64_t& word(int) { return bits; }
  LOUPE_INLINE_HD bool has(uint32_t i) const { return bits >> i & 1; }
  LOUPE_INLINE_HD void add(uint32_t i) { bits |= uint64_t(1) << i; }
};

template <int block, class Set>
LOUPE_INLINE_HD void draw_uniform(const SampleCall& call, uint64_t problem, uint32_t counter, bool turned, Set& to) {
  const uint32_t n = uint32_t(call.players);
  Draws<block> draws(call.seed, problem, counter);
  const uint32_t size = call.stratified
                            ? uint32_t((uint64_t(Draws<1>(call.seed, problem, ~0u).below(n + 1)) + counter) % (n + 1))
                            : draws.below(n + 1);
  const bool outside = 2 * size > n;  // Floyd's algorithm draws whichever is fewer, the members or the others
  const uint32_t drawn = outside ? n - size : size;
  for (int w = 0; w < call.words(); ++w) to.word(w) = 0;
  for (uint32_t j = n - drawn; j < n; ++j) {
    const uint32_t i = draws.below(j + 1);
    to.add(to.has(i) ? j : i);
  }
  if (outside != turned)
    for (int w = 0; w < call.words(); ++w) to.word(w) ^= everyone(call.players, w);
}

// 64 players at once compare a random fraction with the threshold, binary digit by digit from the last that is set.
template <int block, class Set>
LOUPE_INLINE_HD void draw_bernoulli(const SampleCall& call, uint64_t problem, uint32_t counter, bool turned, Set& to) {
  Draws<block> draws(call.seed, problem, counter, turned);
  int lowest = 0;
  while (!(call.threshold >> lowest & 1)) ++lowest;
  for (int w = 0; w < call.words(); ++w) {
    uint64_t inside = 0;
    for (int digit = lowest; digit < 32; ++digit) {
      const uint64_t low = draws.word(), random = low | uint64_t(draws.word()) << 32;
      inside = call.threshold >> digit & 1 ? inside | random : inside & random;
    }
    to.word(w) = inside & everyone(call.players, w);
  }
}

template <int block, class Set>
LOUPE_INLINE_HD void draw_coalition(const SampleCall& call, int64_t b, int64_t k, Set& to) {
  const uint64_t sample = uint64_t(call.first_sample + k), problem = uint64_t(call.first_problem + b);
  const bool turned = call.antithetic && sample % 2 == 1;
  const uint32_t counter = uint32_t(call.antithetic ? sample / 2 : sample);
  if (call.threshold)
    draw_bernoulli<block>(call, problem, counter, turned, to);
  else
    draw_uniform<block>(call, problem, counter, turned, to);
}

// Fisher and Yates' shuffle of order[j * step].
template <int block, class Player>
LOUPE_INLINE_HD void draw_permutation(const SampleCall& call, int64_t b, int64_t k, Player* order, int64_t step) {
  const uint64_t sample = uint64_t(call.first_sample + k), problem = uint64_t(call.first_problem + b);
  const int n = call.players;
  Draws<block> draws(call.seed, problem, uint32_t(call.antithetic ? sample / 2 : sample), false, 1);
  const bool turned = call.antithetic && sample % 2 == 1;
  const auto at = [&](int j) -> Player& { return order[(turned ? n - 1 - j : j) * step]; };
  for (int j = 0; j < n; ++j) at(j) = Player(j);
  for (int j = n - 1; j > 0; --j) {
    const int i = int(draws.below(uint32_t(j) + 1));
    const Player moved = at(i);
    at(i) = at(j);
    at(j) = moved;
  }
}

}  // namespace loupe
