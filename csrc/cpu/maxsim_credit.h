// The CPU kernels of maxsim_credit, [B, M, N] to [B, M, N]: one copy a SIMD target, picked at run time by targets.h.
#pragma once

#include "../core/maxsim_credit.h"

#define LOUPE_DECLARE(target)                                                                    \
  namespace loupe::target {                                                                      \
  void credit_forward(const PairwiseCall& call, void* out, int threads);                         \
  void credit_backward(const PairwiseCall& call, const void* grad, void* grad_scores, int threads); \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
