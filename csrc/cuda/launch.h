// The little that kernels need besides CUDA C++ itself. Without nvcc, tests/emulation/cuda_on_cpu.h stands in for the
// language and the runtime, so that the same .cu files run, and are tested, on a CPU.
#pragma once

#include <stdexcept>
#include <string>

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define LOUPE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
  do {                                                                                                \
    loupe::check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,       \
                                           int(shared_bytes)));                                       \
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__);            \
    loupe::check_cuda(cudaGetLastError());                                                            \
  } while (0)
#define LOUPE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace loupe {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline int max_shared_bytes() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

}  // namespace loupe

#else
#include "cuda_on_cpu.h"
#endif
