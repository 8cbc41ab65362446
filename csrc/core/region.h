// Walks of the pooled-cosine game, v(T) = A_T / sqrt(Q_T): what python_ref/region.py derives; host and device.
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
  bool prefixes;  // a walk is worth the mean over the coalitions it passes through; or the one it ends with
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

// The least that Q counts as: zero vectors, and what rounding leaves of vectors that cancel, are then worth 0.
LOUPE_INLINE_HD float least_square(float trace) {
  const float least = trace * (FLT_EPSILON * FLT_EPSILON);
  return least > FLT_MIN ? least : FLT_MIN;
}
LOUPE_INLINE_HD double least_square(double trace) {
  const double least = trace * (DBL_EPSILON * DBL_EPSILON);
  return least > DBL_MIN ? least : DBL_MIN;
}

}  // namespace loupe
