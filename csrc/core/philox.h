// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random words by counter, so that
// every draw is the same on every backend, in any order. Host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace loupe {

struct Philox {
  uint32_t key[2];

  struct Words {
    uint32_t word[4];
  };

  LOUPE_HD Words operator()(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) const {
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
      const uint32_t n0 = uint32_t(b >> 32) ^ c1 ^ k0, n2 = uint32_t(a >> 32) ^ c3 ^ k1;
      c1 = uint32_t(b);
      c3 = uint32_t(a);
      c0 = n0;
      c2 = n2;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
  }
};

// The words of one sample of one problem (below 2^63), in order: counter (draw, sample, problem), four words a draw. The
// two streams, 0 and 1, share none.
class Draws {
 public:
  LOUPE_HD Draws(uint64_t seed, uint64_t problem, uint32_t sample, bool inverted = false, int stream = 0)
      : philox_{{uint32_t(seed), uint32_t(seed >> 32)}},
        problem_(problem | uint64_t(stream) << 63),
        sample_(sample),
        invert_(inverted ? ~0u : 0u) {}

  LOUPE_HD uint32_t word() {
    if (taken_ == 4) {
      words_ = philox_(draw_++, sample_, uint32_t(problem_), uint32_t(problem_ >> 32));
      taken_ = 0;
    }
    return words_.word[taken_++] ^ invert_;
  }
  // Uniform in 0 .. bound-1, up to a bias below bound / 2^32: the high word of a product.
  LOUPE_HD uint32_t below(uint32_t bound) { return uint32_t((uint64_t(word()) * bound) >> 32); }

 private:
  Philox philox_;
  uint64_t problem_;
  uint32_t sample_, invert_, draw_ = 0;
  int taken_ = 4;
  Philox::Words words_{};
};

}  // namespace loupe
