#pragma once

#ifdef __CUDACC__
#define LOUPE_HD __host__ __device__
#else
#define LOUPE_HD
#endif

namespace loupe {
enum class DType : int { f16, bf16, f32, f64 };
}
