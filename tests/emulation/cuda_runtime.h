// As much of CUDA's runtime as csrc/cuda/launch.h calls: it writes down every call, and launches by calling.
#pragma once

#include <cstddef>
#include <cstdio>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
typedef struct Stream* cudaStream_t;

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x) : x(x), y(1), z(1) {}
};

inline int current_index = 0;
inline cudaError_t last_error = cudaSuccess;

inline cudaError_t told(cudaError_t error) { return last_error = error; }
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* index) {
  *index = current_index;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  std::printf("attribute of device %d\n", index);
  *value = (attribute == cudaDevAttrMultiProcessorCount ? 100 : 200) + index;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  std::printf("%d shared bytes\n", bytes);
  return told(bytes > 1000 ? cudaErrorInvalidValue : cudaSuccess);
}
inline cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t bytes, cudaStream_t) {
  std::printf("launch %u x %u, %zu bytes: %d %g\n", grid.x, block.x, bytes, *static_cast<int*>(arguments[0]),
              **static_cast<const double**>(arguments[1]));
  return told(kernel == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}
