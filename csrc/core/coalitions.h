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
  // Whether the second of a pair is the complement of the first: of Bernoulli coalitions, for p = 1/2 alone.
  LOUPE_INLINE_HD bool turns_over() const { return antithetic && (threshold == 0 || threshold == 1u << 31); }
};

// Where a sample's random words are, and whether it is the second of a pair.
struct SamplePlace {
  uint64_t problem;
  uint32_t counter;
  bool turned;

  LOUPE_INLINE_HD SamplePlace(const SampleCall& call, int64_t b, int64_t k) : problem(uint64_t(call.first_problem + b)) {
    const uint64_t sample = uint64_t(call.first_sample + k);
    counter = uint32_t(call.antithetic ? sample / 2 : sample);
    turned = call.antithetic && sample % 2 == 1;
  }
};

LOUPE_INLINE_HD uint64_t everyone(int players, int word) {
  const int left = players - 64 * word;
  return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
}

// A coalition under construction: bit i % 64 of word i / 64 is player i. In memory ..
struct Coalition {
  uint64_t* words;

  LOUPE_INLINE_HD void put(int w, uint64_t bits) const { words[w] = bits; }
  LOUPE_INLINE_HD void flip(int w, uint64_t bits) const { words[w] ^= bits; }
  LOUPE_INLINE_HD bool has(uint32_t i) const { return words[i / 64] >> (i % 64) & 1; }
  LOUPE_INLINE_HD void add(uint32_t i) const { words[i / 64] |= uint64_t(1) << (i % 64); }
};

// .. or, of up to 64 players, in a register.
struct SmallCoalition {
  uint64_t bits = 0;

  LOUPE_INLINE_HD void put(int, uint64_t to) { bits = to; }
  LOUPE_INLINE_HD void flip(int, uint64_t which) { bits ^= which; }
  LOUPE_INLINE_HD bool has(uint32_t i) const { return bits >> i & 1; }
  LOUPE_INLINE_HD void add(uint32_t i) { bits |= uint64_t(1) << i; }
};

// How many players a uniform subset has.
template <int block>
LOUPE_INLINE_HD uint32_t draw_size(const SampleCall& call, uint64_t problem, uint32_t counter, Draws<block>& draws) {
  const uint32_t sizes = uint32_t(call.players) + 1;
  if (!call.stratified) return below(draws.word(), sizes);
  return uint32_t((uint64_t(below(Draws<1>(call.seed, problem, ~0u).word(), sizes)) + counter) % sizes);
}

template <int block, class Set>
LOUPE_INLINE_HD void draw_uniform(const SampleCall& call, uint64_t problem, uint32_t counter, bool turned, Set& to) {
  const uint32_t n = uint32_t(call.players);
  Draws<block> draws(call.seed, problem, counter);
  const uint32_t size = draw_size(call, problem, counter, draws);
  const bool outside = 2 * size > n;  // Floyd's algorithm draws whichever is fewer, the members or the others
  const uint32_t drawn = outside ? n - size : size;
  for (int w = 0; w < call.words(); ++w) to.put(w, 0);
  draws.each(drawn, [&](uint32_t k, uint32_t word) {
    const uint32_t j = n - drawn + k, i = below(word, j + 1);
    to.add(to.has(i) ? j : i);
  });
  if (outside != turned)
    for (int w = 0; w < call.words(); ++w) to.flip(w, everyone(call.players, w));
}

// 64 players at once compare a random fraction with the threshold, binary digit by digit from the last that is set.
template <int block, class Set>
LOUPE_INLINE_HD void draw_bernoulli(const SampleCall& call, uint64_t problem, uint32_t counter, bool turned, Set& to) {
  Draws<block> draws(call.seed, problem, counter, turned);
  uint32_t lowest = 0, low = 0;
  while (!(call.threshold >> lowest & 1)) ++lowest;
  uint32_t digit = lowest;
  int w = 0;
  uint64_t inside = 0;
  draws.each(2 * (32 - lowest) * uint32_t(call.words()), [&](uint32_t k, uint32_t word) {
    if (k % 2 == 0) {
      low = word;
      return;
    }
    const uint64_t random = low | uint64_t(word) << 32;
    inside = call.threshold >> digit & 1 ? inside | random : inside & random;
    if (++digit < 32) return;
    to.put(w, inside & everyone(call.players, w));
    digit = lowest;
    inside = 0;
    ++w;
  });
}

template <int block, class Set>
LOUPE_INLINE_HD void draw_coalition(const SampleCall& call, int64_t b, int64_t k, Set& to) {
  const SamplePlace at(call, b, k);
  if (call.threshold)
    draw_bernoulli<block>(call, at.problem, at.counter, at.turned, to);
  else
    draw_uniform<block>(call, at.problem, at.counter, at.turned, to);
}

// Fisher and Yates' shuffle of order[j * step].
template <int block, class Player>
LOUPE_INLINE_HD void draw_permutation(const SampleCall& call, int64_t b, int64_t k, Player* order, int64_t step) {
  const SamplePlace place(call, b, k);
  const int n = call.players;
  Draws<block> draws(call.seed, place.problem, place.counter, false, 1);
  const auto at = [&](int j) -> Player& { return order[(place.turned ? n - 1 - j : j) * step]; };
  for (int j = 0; j < n; ++j) at(j) = Player(j);
  draws.each(n > 0 ? uint32_t(n) - 1 : 0, [&](uint32_t k, uint32_t word) {
    const int j = n - 1 - int(k), i = int(below(word, uint32_t(j) + 1));
    const Player moved = at(i);
    at(i) = at(j);
    at(j) = moved;
  });
}

}  // namespace loupe
