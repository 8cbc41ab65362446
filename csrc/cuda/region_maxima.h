// The CUDA kernel of the exact region_interactions, on the current device; nothing waits for it.
#pragma once

#include "../core/region_maxima.h"

namespace loupe {

void region_maxima_cuda(const MaximaCall& call, void* out, void* stream);

}  // namespace loupe
