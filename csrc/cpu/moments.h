// The CPU kernels of coalition_moments.
#pragma once

#include "../core/moments.h"

#define LOUPE_DECLARE(target)                                                                             \
  namespace loupe::target {                                                                               \
  void moments_forward(const MomentsCall& call, const void* values, void* out, int threads);              \
  void moments_backward(const MomentsCall& call, const void* grad, void* grad_values, int threads);       \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
