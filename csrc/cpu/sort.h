// Descending sort of many lines at once: key k of every line sits in one SIMD register, a lane a line, so a sorting
// network's comparator orders all of them with one `order(high, low)`. No branch depends on the data.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#define LOUPE_INLINE inline __attribute__((always_inline))

namespace loupe::LOUPE_TARGET {

template <int N>
struct Batcher {  // Batcher's odd-even merge sort
  struct Pair {
    int high, low;
  };
  int count = 0;
  std::array<Pair, N * 12> pairs{};
  constexpr Batcher() {
    for (int p = 1; p < N; p *= 2)
      for (int k = p; k >= 1; k /= 2)
        for (int j = k % p; j + k < N; j += 2 * k)
          for (int i = j; i < j + k && i + k < N; ++i)
            if (i / (2 * p) == (i + k) / (2 * p)) pairs[count++] = {i, i + k};
  }
};

template <int N, class K, std::size_t... C>
LOUPE_INLINE void order_all(K (&key)[N], std::index_sequence<C...>) {
  constexpr Batcher<N> net;
  (order(key[net.pairs[C].high], key[net.pairs[C].low]), ...);
}

template <int N, class K>
LOUPE_INLINE void sort_registers(K* line) {
  K key[N];
  for (int k = 0; k < N; ++k) key[k] = line[k];
  order_all<N>(key, std::make_index_sequence<Batcher<N>().count>{});
  for (int k = 0; k < N; ++k) line[k] = key[k];
}

// The levels R/2, R/4, .. 1 of a bitonic merge, on registers.
template <int R, class K>
LOUPE_INLINE void merge_registers(K (&key)[R]) {
#pragma GCC unroll 8
  for (int d = R / 2; d >= 1; d /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
      if (!(i & d)) order(key[i], key[i + d]);
}

// log2(R) levels of a merge in one trip through memory, from distance R/2 * step down to `step`.
template <int R, class K>
LOUPE_INLINE void merge_pass(K* line, int64_t n, int64_t step) {
  for (int64_t base = 0; base < n; base += R * step)
    for (int64_t i = base; i < base + step; ++i) {
      K key[R];
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) key[q] = line[i + q * step];
      merge_registers<R>(key);
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) line[i + q * step] = key[q];
    }
}

// The first levels: compare each key of a sorted half with its mirror in the other, then log2(Q) levels within the halves.
template <int Q, class K>
LOUPE_INLINE void mirror_pass(K* line, int64_t n, int64_t half) {
  const int64_t step = half / Q;
  for (int64_t base = 0; base + half < n; base += 2 * half)
    for (int64_t i = 0; i < step; ++i) {
      K* front = line + base + i;
      K* back = line + base + 2 * half - 1 - i;
      K high[Q], low[Q];
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        high[q] = front[q * step];
        low[Q - 1 - q] = back[-q * step];
        order(high[q], low[Q - 1 - q]);
      }
      merge_registers<Q>(high);
      merge_registers<Q>(low);
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        front[q * step] = high[q];
        back[-q * step] = low[Q - 1 - q];
      }
    }
}

// Keys that `sort_lines` reads and writes for lines of n keys: those beyond n must order last.
inline int64_t sorted_size(int64_t n) {
  int64_t size = 4;
  while (size < n) size *= 2;
  return size;
}

template <class K>
LOUPE_INLINE void sort_lines(K* line, int64_t n) {
  if (n <= 4) return sort_registers<4>(line);
  if (n <= 8) return sort_registers<8>(line);
  for (int64_t k = 0; k < n; k += 16) sort_registers<16>(line + k);
  for (int64_t half = 16; half < n; half *= 2) {
    mirror_pass<4>(line, n, half);
    int64_t distance = half / 8;
    for (; distance >= 4; distance /= 8) merge_pass<8>(line, n, distance / 4);
    if (distance == 2) merge_pass<4>(line, n, 1);
    if (distance == 1) merge_pass<2>(line, n, 1);
  }
}

}  // namespace loupe::LOUPE_TARGET
