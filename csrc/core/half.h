// The storage types of a tensor, and the type their arithmetic is done in; host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace loupe {

struct BFloat16 {
  uint16_t bits;
};
#ifdef __CUDACC__
typedef __half Float16;
#else
typedef _Float16 Float16;
#endif

template <class T>
struct Storage {
  typedef T Compute;
  LOUPE_INLINE_HD static T widen(T x) { return x; }
  LOUPE_INLINE_HD static T narrow(T x) { return x; }
};

template <>
struct Storage<Float16> {
  typedef float Compute;
  LOUPE_INLINE_HD static float widen(Float16 x) { return float(x); }
  LOUPE_INLINE_HD static Float16 narrow(float x) { return Float16(x); }
};

template <>
struct Storage<BFloat16> {
  typedef float Compute;
  LOUPE_INLINE_HD static float widen(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
  LOUPE_INLINE_HD static BFloat16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return {uint16_t(nan ? 0x7fc0u : nearest_even)};
  }
};

// Calls work(x) with an x of the storage type that `dtype` names.
template <class Work>
inline void for_dtype(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::f16: return work(Float16{});
    case DType::bf16: return work(BFloat16{});
    case DType::f32: return work(float{});
    case DType::f64: return work(double{});
  }
}

}  // namespace loupe
