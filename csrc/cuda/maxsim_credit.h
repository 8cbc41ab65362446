// The CUDA kernels of maxsim_credit. Tensors and scratch are on the current device; nothing waits for it.
#pragma once

#include "../core/maxsim_credit.h"

namespace loupe {

int64_t credit_scratch_bytes_cuda(const PairwiseCall& call, bool backward);
void credit_forward_cuda(const PairwiseCall& call, void* out, void* scratch, void* stream);
void credit_backward_cuda(const PairwiseCall& call, const void* grad, void* grad_scores, void* scratch, void* stream);

}  // namespace loupe
