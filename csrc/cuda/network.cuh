// Sorting networks of a size known at compile time: a thread sorts its keys in registers, and every index is a constant.
#pragma once

#include <utility>

#include "../core/dtype.h"
#include "launch.h"

namespace loupe {
namespace {

// Comparators in order; each puts the larger key first, so places that hold nothing but padding need none.
template <int P>
struct Network {
  int n = 0;
  unsigned char a[600] = {}, b[600] = {};
};

// Batcher's odd-even merges, upwards from Green's 60 comparators for every 16 keys: 185 for 32 keys, 531 for 64.
template <int P>
LOUPE_HD constexpr Network<P> make_network() {
  constexpr unsigned char kGreen[60][2] = {
      {0, 13}, {1, 12}, {2, 15}, {3, 14}, {4, 8},   {5, 6},   {7, 11},  {9, 10},  {0, 5},   {1, 7},   {2, 9},   {3, 4},
      {6, 13}, {8, 14}, {10, 15}, {11, 12}, {0, 1}, {2, 3},   {4, 5},   {6, 8},   {7, 9},   {10, 11}, {12, 13}, {14, 15},
      {0, 2},  {1, 3},  {4, 10}, {5, 11}, {6, 7},   {8, 9},   {12, 14}, {13, 15}, {1, 2},   {3, 12},  {4, 6},   {5, 7},
      {8, 10}, {9, 11}, {13, 14}, {1, 4}, {2, 6},   {5, 8},   {7, 10},  {9, 13},  {11, 14}, {2, 4},   {3, 6},   {9, 12},
      {11, 13}, {3, 5}, {6, 8},  {7, 9},  {10, 12}, {3, 4},   {5, 6},   {7, 8},   {9, 10},  {11, 12}, {6, 7},   {8, 9}};
  Network<P> net;
  int size = 1, p = 1;
  while (size < P) size *= 2;
  for (; size >= 16 && p < 16; p = 16)
    for (int first = 0; first < P; first += 16)
      for (const auto& pair : kGreen)
        if (first + pair[1] < P) {
          net.a[net.n] = static_cast<unsigned char>(first + pair[0]);
          net.b[net.n++] = static_cast<unsigned char>(first + pair[1]);
        }
  for (; p < size; p *= 2)
    for (int k = p; k >= 1; k /= 2)
      for (int j = k % p; j + k < size; j += 2 * k)
        for (int i = j; i < j + k && i + k < P; ++i)
          if (i / (2 * p) == (i + k) / (2 * p)) {
            net.a[net.n] = static_cast<unsigned char>(i);
            net.b[net.n++] = static_cast<unsigned char>(i + k);
          }
  return net;
}

#ifdef __CUDACC__
template <int P, class Key, class Order, size_t... c>
__device__ inline void apply_network(Key* keys, const Order& order, std::index_sequence<c...>) {
  constexpr Network<P> net = make_network<P>();
  (order(keys[net.a[c]], keys[net.b[c]]), ...);
}
#endif

// order(a, b) leaves the one that comes first in a.
template <int P, class Key, class Order>
__device__ inline void sort_by_network(Key* keys, const Order& order) {
#ifdef __CUDACC__
  apply_network<P>(keys, order, std::make_index_sequence<make_network<P>().n>());
#else  // unrolled, it takes a host compiler minutes
  static constexpr Network<P> net = make_network<P>();
  for (int c = 0; c < net.n; ++c) order(keys[net.a[c]], keys[net.b[c]]);
#endif
}

}  // namespace
}  // namespace loupe
