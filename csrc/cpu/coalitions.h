// The CPU kernels of sample_coalitions and sample_permutations.
#pragma once

#include "../core/coalitions.h"

#define LOUPE_DECLARE(target)                                                                                          \
  namespace loupe::target {                                                                                            \
  void sample_coalitions(const SampleCall& call, uint64_t* out, int threads);   /* [problems, samples, words] */      \
  void sample_permutations(const SampleCall& call, int32_t* out, int threads); /* [problems, samples, players] */    \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
