// The CUDA kernels of shapley_values (order 1) and of the pairs within each side (order 2). Tensors and scratch are on the
// current device; nothing waits for it.
#pragma once

#include "../core/sides.h"

namespace loupe {

int64_t sides_scratch_bytes_cuda(const PairwiseCall& call, int order, bool backward);
void sides_forward_cuda(const PairwiseCall& call, int order, void* regions, void* phrases, void* scratch, void* stream);
void sides_backward_cuda(const PairwiseCall& call, int order, const void* grad_regions, const void* grad_phrases,
                         void* grad_scores, void* grad_col_scores, void* scratch, void* stream);

}  // namespace loupe
