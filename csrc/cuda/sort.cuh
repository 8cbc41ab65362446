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

// `width` lanes hold a line of up to width * I keys in registers (32 / width lines per warp). Every lane sorts its own, then
// lanes are merged in pairs, fours, and so on: a bitonic merge whose first step is against the mirrored place, so that all
// keys are in descending order throughout, and no comparison has a direction.
template <int W, int I, class T>
struct RegisterLine {
  static constexpr int width = W;
  static constexpr int items = I;
  Key<T> key[I];

  __device__ Key<T> get(int t) const { return key[t]; }

  __device__ void sort(int lane) {
#pragma unroll
    for (int size = 2; size <= I; size *= 2) {
#pragma unroll
      for (int t = 0; t < I; ++t)
        if (!(t & size / 2)) order(key[t], key[t ^ (size - 1)]);
      merge_own(size / 4);
    }
#pragma unroll 1
    for (int lanes = 2; lanes <= W; lanes *= 2) {
      const bool first = (lane & lanes / 2) == 0;
#pragma unroll
      for (int t = 0; t < (I + 1) / 2; ++t) {
        const int mirrored = I - 1 - t;
        const Key<T> other = of_lane(key[t], lanes - 1), another = of_lane(key[mirrored], lanes - 1);
        keep(key[mirrored], other, first);
        if (mirrored != t) keep(key[t], another, first);
      }
#pragma unroll 1
      for (int d = lanes / 4; d >= 1; d /= 2) {
#pragma unroll
        for (int t = 0; t < I; ++t) keep(key[t], of_lane(key[t], d), (lane & d) == 0);
      }
      merge_own(I / 2);
    }
  }

 private:
  __device__ static void order(Key<T>& a, Key<T>& b) {
    const bool swap = above(b, a);
    const Key<T> was = a;
    a = swap ? b : a;
    b = swap ? was : b;
  }
  __device__ static void keep(Key<T>& mine, const Key<T>& other, bool larger) {
    if (above(other, mine) == larger) mine = other;
  }
  __device__ static Key<T> of_lane(const Key<T>& mine, int distance) {
    return {__shfl_xor_sync(kWarp, mine.x, distance, W), __shfl_xor_sync(kWarp, mine.at, distance, W)};
  }
  __device__ void merge_own(int from) {
#pragma unroll
    for (int d = I / 2; d >= 1; d /= 2) {
      if (d > from) continue;
#pragma unroll
      for (int t = 0; t < I; ++t)
        if (!(t & d)) order(key[t], key[t + d]);
    }
  }
};

// A whole warp holds a line of `32 * items` keys, a power of two, in memory: those that are too many for registers.
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
