// Walks of the pooled-cosine game, v(T) = A_T / sqrt(Q_T), Q_T no less than its floor: what python_ref/region.py derives; host and device.
#pragma once

#include <cfloat>
#include <cstdint>

#include "dtype.h"

namespace loupe {

// One call of the op. Tensors are dense and contiguous, in float32 or float64.
struct RegionCall {
  const void* values;       // a [B, n]
  const void* gram;         // G [B, n, n]
  const uint64_t* regions;  // [B, R, words]
  const int32_t* orders;    // [B, K, n]: who joins at each step of a walk; outside 0 .. n-1: nobody
  int64_t B, R, K;
  int n;
  bool prefixes;  // a walk's value is the mean over the coalitions it passes through; or that of the one it ends with
  DType dtype;

  LOUPE_INLINE_HD int words() const { return (n + 63) / 64; }
  LOUPE_INLINE_HD bool has(const uint64_t* region, int i) const { return i < n && region[i / 64] >> (i % 64) & 1; }
  // How many members come before player i.
  LOUPE_INLINE_HD int rank(const uint64_t* region, int i) const {
    int count = 0;
    for (int w = 0; w <= i / 64; ++w) {
      uint64_t word = region[w];
      if (w == i / 64) word &= (uint64_t(1) << (i % 64)) - 1;
#ifdef __CUDA_ARCH__
      count += __popcll(word);
#else
      count += __builtin_popcountll(word);
#endif
    }
    return count;
  }
};

// The least that Q_T counts as, a patch's share of it: 4 n eps G_ii is above the rounding error of Q_T where T's sum cancels.
// A coalition's floor starts at least_square(), so that zero vectors have value 0.
LOUPE_INLINE_HD float floor_of(float own, int n) { return 4 * FLT_EPSILON * float(n) * own; }
LOUPE_INLINE_HD double floor_of(double own, int n) { return 4 * DBL_EPSILON * double(n) * own; }
LOUPE_INLINE_HD float least_square(float) { return FLT_MIN; }
LOUPE_INLINE_HD double least_square(double) { return DBL_MIN; }

}  // namespace loupe
