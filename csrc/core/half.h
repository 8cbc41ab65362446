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

// The number at a place of a tensor whose dtype is one of those that are computed in T.
template <class T>
LOUPE_INLINE_HD T load_wide(const void* tensor, DType dtype, int64_t at) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return static_cast<const T*>(tensor)[at];
  } else {
    if (dtype == DType::f16) return Storage<Float16>::widen(static_cast<const Float16*>(tensor)[at]);
    if (dtype == DType::bf16) return Storage<BFloat16>::widen(static_cast<const BFloat16*>(tensor)[at]);
    return static_cast<const T*>(tensor)[at];
  }
}

template <class T>
LOUPE_INLINE_HD void store_narrow(void* tensor, DType dtype, int64_t at, T x) {
  if constexpr (sizeof(T) == sizeof(double)) {
    static_cast<T*>(tensor)[at] = x;
  } else {
    if (dtype == DType::f16) static_cast<Float16*>(tensor)[at] = Storage<Float16>::narrow(x);
    else if (dtype == DType::bf16) static_cast<BFloat16*>(tensor)[at] = Storage<BFloat16>::narrow(x);
    else static_cast<T*>(tensor)[at] = x;
  }
}

}  // namespace loupe
