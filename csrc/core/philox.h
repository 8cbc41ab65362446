// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random words by counter, so that
// every draw is the same on every backend, in any order. Host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace loupe {

// The four words of a counter, in place.
LOUPE_INLINE_HD void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ k0;
    c2 = uint32_t(a >> 32) ^ c3 ^ k1;
    c1 = uint32_t(b);
    c3 = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Uniform in 0 .. bound-1, up to a bias below bound / 2^32: the high word of a product.
LOUPE_INLINE_HD uint32_t below(uint32_t word, uint32_t bound) { return uint32_t((uint64_t(word) * bound) >> 32); }

// The words of one sample of one problem (below 2^63), in order: counter (draw, sample, problem), four words a draw. The
// two streams, 0 and 1, share none. Draws are made `block` at a time, for a CPU to make them side by side.
template <int block>
class Draws {
 public:
  LOUPE_INLINE_HD Draws(uint64_t seed, uint64_t problem, uint32_t sample, bool inverted = false, int stream = 0)
      : seed_(seed), problem_(problem | uint64_t(stream) << 63), sample_(sample), invert_(inverted ? ~0u : 0u) {}

  LOUPE_INLINE_HD uint32_t word() {
    if (taken_ == 4 * block) {
      refill();
      taken_ = 0;
    }
    const int at = taken_++;
    return words_[at % 4][at / 4] ^ invert_;
  }
  // use(k, word) with the next words, for k < count. Unlike a loop over word(), it leaves a GPU's words in registers.
  template <class Use>
  LOUPE_INLINE_HD void each(uint32_t count, const Use& use) {
    for (uint32_t k = 0; k < count;) {
      if (taken_ == 4 * block) {
        refill();
        taken_ = 0;
      }
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
      for (int at = 0; at < 4 * block; ++at)
        if (at >= taken_ && k < count) {
          taken_ = at + 1;
          use(k++, words_[at % 4][at / 4] ^ invert_);
        }
    }
  }

 private:
  LOUPE_INLINE_HD void refill() {
    for (int d = 0; d < block; ++d) {
      uint32_t c0 = draw_ + uint32_t(d), c1 = sample_, c2 = uint32_t(problem_), c3 = uint32_t(problem_ >> 32);
      philox(c0, c1, c2, c3, uint32_t(seed_), uint32_t(seed_ >> 32));
      words_[0][d] = c0;
      words_[1][d] = c1;
      words_[2][d] = c2;
      words_[3][d] = c3;
    }
    draw_ += block;
  }

  uint64_t seed_, problem_;
  uint32_t sample_, invert_, draw_ = 0;
  int taken_ = 4 * block;
  uint32_t words_[4][block];
};

}  // namespace loupe
