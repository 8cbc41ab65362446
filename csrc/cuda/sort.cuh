// Sorted lines of a warp, descending and stable: entry k of a line of n is get(k % items) of lane k / items.
#pragma once

#include "launch.h"
#include "network.cuh"

namespace loupe {

template <class T>
struct Key {
  T x;
  int at;
};

template <class T>
__device__ bool above(const Key<T>& a, const Key<T>& b) {
  return bool((a.x > b.x) | ((a.x == b.x) & (a.at < b.at)));  // no branch
}

template <class T>
__device__ void order(Key<T>& a, Key<T>& b) {
  const bool swap = above(b, a);
  const Key<T> was = a;
  a = swap ? b : a;
  b = swap ? was : b;
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
  __device__ int rank(int lane, int t) const { return lane * I + t; }

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

// A whole warp holds a line of up to 32 * I keys in registers, `each` per lane, and has memory for them and one more. Every lane
// sorts its own; then lanes are merged in pairs, fours, and so on: a lane finds where its part of the result begins in
// either half (Odeh et al., Merge Path, 2012), and takes the larger of the two next keys, `each` times.
template <int I, class T>
struct MergedLine {
  static constexpr int width = 32;
  static constexpr int items = I;
  int each;
  Key<T>* keys;
  Key<T> key[I];

  // Odd, so that the lanes' parts begin in different banks.
  __host__ __device__ static int each_of(int n) { return (n + 31) / 32 | 1; }
  __host__ __device__ static int memory_of(int n) { return 32 * each_of(n) + 1; }

  __device__ Key<T> get(int t) const { return key[t]; }
  __device__ int rank(int lane, int t) const { return t < each ? lane * each + t : 32 * each; }

  __device__ void sort(int lane) {
    sort_by_network<I>(key, [](Key<T>& a, Key<T>& b) { order(a, b); });
#pragma unroll 1
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int begin = lane * each, half = lanes * each;  // of the lane's part of the result; the halves lie from..middle..end
      const int from = (lane & ~(2 * lanes - 1)) * each, middle = from + half, end = middle + half;
      __syncwarp();
#pragma unroll
      for (int t = 0; t < I; ++t)
        if (t < each) keys[begin + t] = key[t];
      __syncwarp();
      const int sum = begin + middle;  // of the places i and j, one in either half, where the part begins
      int i = begin > middle ? begin - half : from, most = begin < middle ? begin : middle;
      while (i < most) {
        const int mean = (i + most) / 2;
        if (keys[sum - 1 - mean].x > keys[mean].x) most = mean;
        else i = mean + 1;
      }
      int j = sum - i;
      Key<T> a = keys[i], b = keys[j];
#pragma unroll
      for (int t = 0; t < I; ++t) {
        if (t >= each) continue;
        const bool first = bool((j == end) | ((i < middle) & !(b.x > a.x)));  // of equal ones that of the lower index
        key[t] = first ? a : b;
        const int at = (first ? i : j) + 1;
        const Key<T> next = keys[at];
        i = first ? at : i;
        j = first ? j : at;
        a = first ? next : a;
        b = first ? b : next;
      }
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
  __device__ int rank(int lane, int t) const { return lane * items + t; }

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
