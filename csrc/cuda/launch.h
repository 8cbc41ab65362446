// The little that kernels need besides CUDA C++ itself. Without nvcc, tests/emulation/cuda_on_cpu.h stands in for the
// language and the runtime, so that the same .cu files run, and are tested, on a CPU.
#pragma once

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#define LOUPE_LAUNCH(...) loupe::launch(__VA_ARGS__)
#define LOUPE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// d [16, 8] += a [16, 16] b [16, 8] of bfloat16 by a warp's tensor core: float d[4], uint32_t a[4], b[2] are a lane's parts, as
// PTX's mma.m16n8k16 gives them. Where kTensorCores says so.
#define LOUPE_MULTIPLY_ADD(d, a, b)                                                                                    \
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "             \
      "{%0, %1, %2, %3};"                                                                                              \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

namespace loupe {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is told here, and not once more to whoever asks next
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

struct Device {
  int index, multiprocessors, max_shared_bytes;
};

// The current device. A thread asks for its attributes once.
inline const Device& current_device() {
  thread_local std::map<int, Device> devices;
  int index = 0;
  check_cuda(cudaGetDevice(&index));
  const auto known = devices.find(index);
  if (known != devices.end()) return known->second;
  Device device{index, 0, 0};
  check_cuda(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, index));
  check_cuda(cudaDeviceGetAttribute(&device.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  return devices[index] = device;
}

inline int multiprocessors() { return current_device().multiprocessors; }
inline int max_shared_bytes() { return current_device().max_shared_bytes; }

// Lets a kernel have that much dynamic shared memory. It is asked for only when it grows: a smaller limit would be in force
// for other threads' launches too.
inline void allow_shared(const void* kernel, int64_t bytes) {
  if (bytes == 0) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> allowed;  // by kernel and device
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& most = allowed[{kernel, current_device().index}];
  if (bytes <= most) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  most = bytes;
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), unsigned grid, unsigned block, int64_t shared_bytes, void* stream,
            std::common_type_t<Parameters>... arguments) {
  const void* address = reinterpret_cast<const void*>(kernel);
  void* arguments_at[] = {&arguments...};
  allow_shared(address, shared_bytes);
  check_cuda(cudaLaunchKernel(address, dim3(grid), dim3(block), arguments_at, size_t(shared_bytes),
                              static_cast<cudaStream_t>(stream)));
}

}  // namespace loupe

#else
#include "cuda_on_cpu.h"
#endif
