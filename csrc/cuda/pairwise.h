// The CUDA kernels of pairwise_interactions. Tensors and scratch are on the current device; nothing waits for it.
#pragma once

#include "../core/pairwise.h"

namespace loupe {

int64_t pairwise_scratch_bytes_cuda(const PairwiseCall& call);
void pairwise_forward_cuda(const PairwiseCall& call, void* out, void* scratch, void* stream);
void pairwise_backward_cuda(const PairwiseCall& call, const void* grad, void* grad_scores, void* grad_col_scores,
                            void* scratch, void* stream);

}  // namespace loupe
