// Storage types of a tensor and the type their arithmetic is done in.
#pragma once

#include <cstdint>
#include <cstring>

namespace loupe::LOUPE_TARGET {

struct BFloat16 {
  uint16_t bits;
};
typedef _Float16 Float16;

template <class T>
struct Storage {
  typedef T Compute;
  static T widen(T x) { return x; }
  static T narrow(T x) { return x; }
};

template <>
struct Storage<Float16> {
  typedef float Compute;
  static float widen(Float16 x) { return float(x); }
  static Float16 narrow(float x) { return Float16(x); }
};

template <>
struct Storage<BFloat16> {
  typedef float Compute;
  static float widen(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
  static BFloat16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return {uint16_t(nan ? 0x7fc0u : nearest_even)};
  }
};

}  // namespace loupe::LOUPE_TARGET
