// The CUDA kernels of coalition_moments, on the current device.
#pragma once

#include "../core/moments.h"

namespace loupe {

int64_t moments_scratch_bytes_cuda(const MomentsCall& call);
void moments_forward_cuda(const MomentsCall& call, const void* values, void* out, void* scratch, void* stream);
void moments_backward_cuda(const MomentsCall& call, const void* grad, void* grad_values, void* stream);

}  // namespace loupe
