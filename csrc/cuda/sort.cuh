// Sorted lines of a warp, descending and stable: entry k of a line of n is get(k % items) of lane k / items.
#pragma once

#include "launch.h"

namespace loupe {

template <class T>
struct Key {
  T x;
  int at;
};

template <class T>
__device__ bool above(const Key<T>& a, const Key<T>& b) {
  return a.x > b.x || (a.x == b.x && a.at < b.at);
}

constexpr unsigned kWarp = 0xffffffffu;

// `width` lanes hold a line of up to width * I keys in registers (32 / width lines a warp); a bitonic sort by shuffles.
template <int W, int I, class T>
struct RegisterLine {
  static constexpr int width = W;
  static constexpr int items = I;
  Key<T> key[I];

  __device__ Key<T> get(int t) const { return key[t]; }

  __device__ void sort(int lane) {
#pragma unroll
    for (int size = 2; size <= W * I; size *= 2)
#pragma unroll
      for (int d = size / 2; d >= 1; d /= 2) {
        if (d >= I) {
#pragma unroll
          for (int t = 0; t < I; ++t) {
            const Key<T> other{__shfl_xor_sync(kWarp, key[t].x, d / I, W), __shfl_xor_sync(kWarp, key[t].at, d / I, W)};
            const int k = lane * I + t;
            const bool keep_larger = ((k & d) == 0) == ((k & size) == 0 || size == W * I);
            if (above(other, key[t]) == keep_larger) key[t] = other;
          }
        } else {
#pragma unroll
          for (int t = 0; t < I; ++t)
            if (!(t & d)) {
              const int k = lane * I + t;
              const bool larger_first = (k & size) == 0 || size == W * I;
              if (above(key[t + d], key[t]) == larger_first) {
                const Key<T> swapped = key[t];
                key[t] = key[t + d];
                key[t + d] = swapped;
              }
            }
        }
      }
  }
};

// A whole warp holds a line of `32 * items` keys, a power of two, in memory.
template <class T>
struct MemoryLine {
  static constexpr int width = 32;
  int items;
  Key<T>* keys;
  int base = 0;

  __device__ Key<T> get(int t) const { return keys[base + t]; }

  __device__ void sort(int lane) {
    const int n = 32 * items;
    for (int size = 2; size <= n; size *= 2)
      for (int d = size / 2; d >= 1; d /= 2) {
        __syncwarp();
        for (int q = lane; q < n / 2; q += 32) {
          const int k = 2 * d * (q / d) + q % d;
          if (above(keys[k + d], keys[k]) == ((k & size) == 0)) {
            const Key<T> swapped = keys[k];
            keys[k] = keys[k + d];
            keys[k + d] = swapped;
          }
        }
      }
    __syncwarp();
    base = lane * items;
  }
};

}  // namespace loupe
