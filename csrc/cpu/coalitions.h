// The CPU kernels of sample_coalitions and sample_permutations.
#pragma once

#include "../core/coalitions.h"

namespace loupe {

void sample_coalitions_cpu(const SampleCall& call, uint64_t* out, int threads);    // [problems, samples, words]
void sample_permutations_cpu(const SampleCall& call, int32_t* out, int threads);  // [problems, samples, players]

}  // namespace loupe
