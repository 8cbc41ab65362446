// The CPU kernels of shapley_values (order 1: [B, M] and [B, N]) and of the pairs within each side (order 2: [B, M, M] and
// [B, N, N]): one copy a SIMD target, picked at run time by targets.h.
#pragma once

#include "../core/sides.h"

#define LOUPE_DECLARE(target)                                                                                   \
  namespace loupe::target {                                                                                     \
  void sides_forward(const PairwiseCall& call, int order, void* regions, void* phrases, int threads);           \
  void sides_backward(const PairwiseCall& call, int order, const void* grad_regions, const void* grad_phrases,  \
                      void* grad_scores, void* grad_col_scores, int threads);                                   \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
