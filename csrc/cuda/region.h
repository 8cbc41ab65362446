// The CUDA kernel of region_interactions' walks. Tensors and scratch are on the current device; nothing waits for it.
#pragma once

#include "../core/region.h"

namespace loupe {

int64_t region_scratch_bytes_cuda(const RegionCall& call);
void region_walks_cuda(const RegionCall& call, void* out, void* scratch, void* stream);

}  // namespace loupe
