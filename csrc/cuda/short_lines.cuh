// Lines of up to 64 entries in the registers of one thread: its keys, their sort, and the weights of the sorted places.
#pragma once

#include <cmath>
#include <cstring>

#include "../core/half.h"
#include "../core/pairwise.h"
#include "network.cuh"

namespace loupe {
namespace {

__device__ inline unsigned bits_of(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
__device__ inline float float_of(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Scores of a line are between -kBeyond and kBeyond; a key that is no entry's has -kBeyond, and their differences are finite.
constexpr float kBeyond = 0x1p127f;

// The keys: a score and its place in the tile, k * step floats from the line's first.

// A float beside the place in bytes. The place is the low bits of a float, 2^23 + place, so that the units for
// floats exchange it: those for comparisons, which work at half their rate, are what a sort waits for.
struct WideKey {
  static constexpr unsigned kFirst = 0x4b000000u;  // the bits of 2^23
  float x, place;

  template <bool stable>
  __device__ static WideKey of(float x, int k, int step) {
    return {x, float_of(kFirst + unsigned(4 * k * step))};
  }
  __device__ static void order(WideKey& a, WideKey& b) {
    const float swap = b.x > a.x ? 1.0f : 0.0f, step = b.place - a.place;
    const float high = fmaxf(a.x, b.x), low = fminf(a.x, b.x);
    a = {high, fmaf(swap, step, a.place)};
    b = {low, fmaf(-swap, step, b.place)};
  }
  __device__ float value() const { return x; }
  template <bool stable>
  __device__ int at() const {
    return int(bits_of(place) - kFirst);
  }

  // Sorts the keys; stable: of equal values the lower place comes first. The network leaves them in any order, which a
  // second one, over places alone, mends where it must: a run of equal values is told apart by the place where it begins.
  template <int P, bool stable>
  __device__ static void sort(WideKey* keys) {
    sort_by_network<P>(keys, [](WideKey& a, WideKey& b) { order(a, b); });
    if constexpr (stable) {
      bool mixed = false;
#pragma unroll
      for (int k = 1; k < P; ++k) mixed = mixed || (keys[k].x == keys[k - 1].x && keys[k].place < keys[k - 1].place);
      if (!mixed) return;
      constexpr float kRun = 65536;  // more than any place
      float run = 0;
#pragma unroll
      for (int k = 1; k < P; ++k) {
        if (keys[k].x != keys[k - 1].x) run = k * kRun;
        keys[k].place += run;
      }
      sort_by_network<P>(keys, [](WideKey& a, WideKey& b) {
        const float first = fminf(a.place, b.place), second = fmaxf(a.place, b.place);
        a.place = first;
        b.place = second;
      });
      run = 0;
#pragma unroll
      for (int k = 1; k < P; ++k) {
        if (keys[k].x != keys[k - 1].x) run = k * kRun;
        keys[k].place -= run;
      }
    }
  }
};

// A half type leaves 13 low bits of its float free: they hold the place, and one maximum and one minimum exchange
// both.
struct PackedKey {
  static constexpr unsigned kPlace = 8191;
  float bits;

  // Larger bits make a negative number smaller: which of two equal values comes first depends on their sign.
  __device__ static unsigned turned(unsigned bits) { return ~unsigned(int(bits) >> 31) & kPlace; }
  template <bool stable>
  __device__ static PackedKey of(float x, int k, int step) {
    const unsigned value = bits_of(stable ? x + 0.0f : x), place = unsigned(k * step);  // the two zeros are equal
    return {float_of(value | (stable ? place ^ turned(value) : place))};
  }
  __device__ float value() const { return float_of(bits_of(bits) & ~kPlace); }
  template <bool stable>
  __device__ int at() const {
    const unsigned all = bits_of(bits);
    return int((stable ? all ^ turned(all) : all) & kPlace) * 4;
  }
  template <int P, bool stable>
  __device__ static void sort(PackedKey* keys) {
    sort_by_network<P>(keys, [](PackedKey& a, PackedKey& b) {
      const float high = fmaxf(a.bits, b.bits), low = fminf(a.bits, b.bits);
      a.bits = high;
      b.bits = low;
    });
  }
};

template <class In>
struct ShortKey {
  typedef PackedKey Type;
};
template <>
struct ShortKey<float> {
  typedef WideKey Type;
};

// The weights of a sorted line's places for F and G, for a direction's share of the game. `below` sums those of the places
// after it, `own` is what the place carries itself; backward, `below` starts with the entry's own a and b.
struct Weights {
  float f, g;
};
struct ShortTable {
  float a, b;  // forward: of F + G and of G
  Weights *below, *own;
};

// By one thread, in double: the weights of `lines` lines with n entries, 0 of the places from n to `size`; as in
// LineWeights, from a table of its atoms.
template <bool backward>
__device__ void prepare_short(ShortTable& table, int lines, int n, int size, double p, double share, const double* atoms) {
  const bool shapley = LineWeights::shapley(p);
  const double* terms = atoms + (shapley ? n : 0);
  double sum = 0, excess = 0;
#pragma unroll 1
  for (int t = 0; t < lines; ++t) {
    sum += terms[t];
    excess += terms[t] - terms[lines - 1];
  }
  const double mean = share * sum / lines, lone = lines > 1 ? share * excess / (double(lines) * (lines - 1)) : 0;
  const double empty = shapley ? 1 : atoms[n - 1], a = empty * mean, b = empty * lone;
  table.a = float(a + b);
  table.b = float(b);
#pragma unroll 1
  for (int k = n; k < size; ++k) {
    table.below[k] = {};
    if (backward) table.own[k] = {};
  }
  double f = 0, g = 0;
#pragma unroll 1
  for (int k = n - 1; k >= 0; --k) {
    table.below[k] = backward ? Weights{float(a + f), float(b + g)} : Weights{float(f + g), float(g)};
    double w = 0, v = 0;  // the last of them, of place 0, are of no pair
    if (k > 0) {
      w = shapley ? share * atoms[k] * atoms[lines + k] : p * atoms[k - 1] * mean;
      v = !shapley ? p * atoms[k - 1] * lone : lines > 1 ? w * atoms[lines + k - 1] : 0;
    }
    if (backward) table.own[k] = {float(w), float(v)};
    f += w;
    g += v;
  }
}

// The smallest network's size that holds n <= 64 keys.
LOUPE_HD inline int network_size(int n) {
  return n <= 4 ? 4 : n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : n <= 56 ? 56 : 64;
}

// Calls work(size) with that size as a type; it is no more than P.
template <int size>
struct Size {
  static constexpr int value = size;
};
template <int P, class Work>
__device__ inline void with_size(int size, const Work& work) {
  if (size == 4) return work(Size<4>{});
  if (size == 8) return work(Size<8>{});
  if constexpr (P <= 16) {
    return work(Size<16>{});
  } else {
    if (size == 16) return work(Size<16>{});
    if constexpr (P <= 32) {
      return work(Size<32>{});
    } else {
      if (size == 32) return work(Size<32>{});
      if (size == 56) return work(Size<56>{});
      return work(Size<64>{});
    }
  }
}

}  // namespace
}  // namespace loupe
