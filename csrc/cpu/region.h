// The CPU kernel of region_interactions' walks.
#pragma once

#include "../core/region.h"

#define LOUPE_DECLARE(target)                                              \
  namespace loupe::target {                                                \
  void region_walks(const RegionCall& call, void* out, int threads);       \
  }
LOUPE_DECLARE(generic)
#ifdef __x86_64__
LOUPE_DECLARE(avx2)
LOUPE_DECLARE(avx512)
#endif
#undef LOUPE_DECLARE
