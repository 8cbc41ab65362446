// The CPU kernels of pairwise_interactions: one copy a SIMD target, picked at run time by targets.h.
#pragma once

#include "../core/pairwise.h"

#define LOUPE_DECLARE(target)                                                           \
  namespace loupe::target {                                                             \
  void pairwise_forward(const PairwiseCall& call, void* out, int threads);              \
  void pairwise_backward(const PairwiseCall& call, const void* grad, void* grad_scores, \
                         void* grad_col_scores, int threads);                           \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
