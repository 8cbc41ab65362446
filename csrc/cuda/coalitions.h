// The CUDA kernels of sample_coalitions and sample_permutations, on the current device.
#pragma once

#include "../core/coalitions.h"

namespace loupe {

void sample_coalitions_cuda(const SampleCall& call, uint64_t* out, void* stream);
void sample_permutations_cuda(const SampleCall& call, int32_t* out, void* stream);

}  // namespace loupe
