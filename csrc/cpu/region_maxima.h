// The CPU kernel of the exact region_interactions.
#pragma once

#include "../core/region_maxima.h"

#define LOUPE_DECLARE(target)                                              \
  namespace loupe::target {                                                \
  void region_maxima(const MaximaCall& call, void* out, int threads);      \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
