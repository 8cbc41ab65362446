// Random coalitions and permutations from counters: the laws of python_ref/coalitions.py, bit for bit; host and device.
#pragma once

#include "philox.h"

namespace loupe {

enum class CoalitionLaw : int { uniform, stratified, bernoulli };

// One call. Sample k of problem b is that of the pair k / 2 (with `antithetic`), turned over when k is odd.
struct CoalitionCall {
  int64_t problems, samples, first_problem, first_sample;
  uint64_t seed;
  int players;
  int words;  // 64-bit words a coalition
  bool antithetic;
  CoalitionLaw law;
  uint32_t threshold;  // bernoulli: p as a fraction of 2^32
};

// A coalition under construction: bit i % 64 of word i / 64, the words `step` apart.
struct Bits {
  uint64_t* words;
  int64_t step;
  LOUPE_HD bool has(uint32_t i) const { return words[(i / 64) * step] >> (i % 64) & 1; }
  LOUPE_HD void add(uint32_t i) const { words[(i / 64) * step] |= uint64_t(1) << (i % 64); }
};

// The players of word w: all ones but beyond the last player.
LOUPE_HD inline uint64_t full_word(int players, int w) {
  const int left = players - 64 * w;
  return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
}

// A uniform subset of the given size: Floyd's algorithm, on the complement when that is smaller.
LOUPE_HD inline void uniform_subset(Draws& draws, int players, int words, int size, const Bits& bits) {
  const bool complement = 2 * size > players;
  const int drawn = complement ? players - size : size;
  for (int w = 0; w < words; ++w) bits.words[w * bits.step] = 0;
  for (int j = players - drawn; j < players; ++j) {
    const uint32_t i = draws.below(uint32_t(j) + 1);
    bits.add(bits.has(i) ? uint32_t(j) : i);
  }
  if (complement)
    for (int w = 0; w < words; ++w) bits.words[w * bits.step] ^= full_word(players, w);
}

// Every player with probability threshold / 2^32: 64 players at once compare a random fraction with it, binary digit by
// digit from the last that is set.
LOUPE_HD inline void bernoulli_subset(Draws& draws, int players, int words, uint32_t threshold, const Bits& bits) {
  int lowest = 0;
  while (lowest < 31 && !(threshold >> lowest & 1)) ++lowest;
  for (int w = 0; w < words; ++w) {
    uint64_t in = 0;
    for (int digit = lowest; digit < 32; ++digit) {
      const uint64_t low = draws.word(), random = low | uint64_t(draws.word()) << 32;
      in = threshold >> digit & 1 ? in | random : in & random;
    }
    bits.words[w * bits.step] = in & full_word(players, w);
  }
}

}  // namespace loupe
