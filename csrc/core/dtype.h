#pragma once

#ifdef __CUDACC__
#define LOUPE_HD __host__ __device__
#define LOUPE_INLINE_HD __host__ __device__ __forceinline__
#else
#define LOUPE_HD
#define LOUPE_INLINE_HD inline __attribute__((always_inline))
#endif

namespace loupe {
enum class DType : int { f16, bf16, f32, f64 };
}
