// The late-interaction game's part that takes maxima: for each word, Psi(max over R) - sum over R of Psi, with the words'
// scores sorted. python_ref/region.py derives it. Psi's slope just below a patch is the chance that the coalition holds none
// of the r outside patches from there up, a number of r alone. Host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace loupe {

// One call of the op. Tensors are dense and contiguous, in float32 or float64.
struct MaximaCall {
  const void* sorted;       // [B, N, n], descending
  const int64_t* order;     // [B, N, n]: whose score it is
  const uint64_t* regions;  // [B, R, words]
  const void* slopes;       // [n + 1], of r
  const int64_t* lengths;   // [B]: words of each text
  int64_t B, R, N;
  int n;
  DType dtype;

  LOUPE_INLINE_HD int words() const { return (n + 63) / 64; }
  LOUPE_INLINE_HD bool has(const uint64_t* region, int64_t i) const {
    return uint64_t(i) < uint64_t(n) && region[i / 64] >> (i % 64) & 1;
  }
  LOUPE_INLINE_HD int64_t length(int64_t b) const {
    return lengths[b] < 0 ? 0 : lengths[b] < N ? lengths[b] : N;
  }
};

}  // namespace loupe
