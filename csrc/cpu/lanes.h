// SIMD lanes on GCC/Clang vector types, one source for every target, and the sort keys that live in them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "sort.h"

namespace loupe::LOUPE_TARGET {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

template <class T, int count>
struct VecOf {
  typedef T type __attribute__((vector_size(count * sizeof(T))));
};
template <class T, int count = kLanes>
using Vec = typename VecOf<T, count>::type;
constexpr std::make_integer_sequence<int, kLanes> kLaneSequence;
typedef Vec<double> Real;
typedef Vec<int64_t> Int;

constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

template <class V, class T>
LOUPE_INLINE V load(const T* from) {
  V lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

template <class V, class T>
LOUPE_INLINE void store(T* to, V lanes) {
  std::memcpy(to, &lanes, sizeof lanes);
}

// Named, since the compiler makes two masked moves of a pair of conditionals.
LOUPE_INLINE Real larger(Real a, Real b) {
#if defined(__AVX512F__)
  return (Real)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Real)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}
LOUPE_INLINE Real smaller(Real a, Real b) {
#if defined(__AVX512F__)
  return (Real)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Real)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
  return a < b ? a : b;
#endif
}

template <class T>
LOUPE_INLINE Real load_real(const T* from) {
  return __builtin_convertvector(load<Vec<T>>(from), Real);
}

// Transposes a square of kLanes vectors in log2(kLanes) rounds of two-vector shuffles.
template <int distance = 1, class T, int... L>
LOUPE_INLINE void transpose(Vec<T> (&row)[kLanes], std::integer_sequence<int, L...> lanes) {
  typedef Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>> Mask;
  constexpr Mask upper = {(L & distance ? kLanes + L - distance : L)...};
  constexpr Mask lower = {(L & distance ? kLanes + L : L + distance)...};
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; ++i)
    if (!(i & distance)) {
      const Vec<T> a = row[i], b = row[i + distance];
      row[i] = __builtin_shuffle(a, b, upper);
      row[i + distance] = __builtin_shuffle(a, b, lower);
    }
  if constexpr (2 * distance < kLanes) transpose<2 * distance, T>(row, lanes);
}

// Two numbers of one matrix entry, kept together so that one scatter moves both.
template <class T>
struct Two {
  T f, g;
};

template <class T>
using Pairs = Vec<T, 2 * kLanes>;

template <class T, int parity, int... L>
LOUPE_INLINE Vec<T> every_other(Pairs<T> x, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(x, x, (2 * L + parity)...);
}
template <class T>
LOUPE_INLINE Vec<T> even(Pairs<T> x) {
  return every_other<T, 0>(x, kLaneSequence);
}
template <class T>
LOUPE_INLINE Vec<T> odd(Pairs<T> x) {
  return every_other<T, 1>(x, kLaneSequence);
}
template <class T>
LOUPE_INLINE T lane_sum(Vec<T> x) {
  T sum[kLanes];
  store(sum, x);
#pragma GCC unroll 3
  for (int half = kLanes / 2; half >= 1; half /= 2)
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}
template <class T>
LOUPE_INLINE auto first_lanes(int64_t n) {
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Index;
  Vec<Index> lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  return lane < Index(n);
}
template <class T, int... L>
LOUPE_INLINE Pairs<T> interleaved(Vec<T> x, Vec<T> y, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(x, y, (L / 2 + L % 2 * kLanes)...);
}

LOUPE_INLINE void scatter(Two<float>* to, Int at, Real f, Real g) {
  const auto both = interleaved<float>(__builtin_convertvector(f, Vec<float>), __builtin_convertvector(g, Vec<float>),
                                       std::make_integer_sequence<int, 2 * kLanes>{});
#ifdef __AVX512F__
  _mm512_i64scatter_epi64(to, (__m512i)at, (__m512i)both, sizeof *to);
#else
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) std::memcpy(to + at[l], (const char*)&both + 8 * l, 8);
#endif
}

LOUPE_INLINE void scatter(Two<double>* to, Int at, Real f, Real g) {
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) to[at[l]] = {f[l], g[l]};
}

LOUPE_INLINE void gather(const Two<float>* from, Int at, Real& f, Real& g) {
  Int both;
#ifdef __AVX512F__
  both = (Int)_mm512_i64gather_epi64((__m512i)at, from, sizeof *from);
  f = (Real)_mm512_cvtps_pd((__m256)_mm512_cvtepi64_epi32((__m512i)both));
  g = (Real)_mm512_cvtps_pd((__m256)_mm512_cvtepi64_epi32((__m512i)(both >> 32)));
#else
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) std::memcpy((char*)&both + 8 * l, from + at[l], 8);
  f = __builtin_convertvector(even<float>((Pairs<float>)both), Real);
  g = __builtin_convertvector(odd<float>((Pairs<float>)both), Real);
#endif
}

LOUPE_INLINE void gather(const Two<double>* from, Int at, Real& f, Real& g) {
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) {
    f[l] = from[at[l]].f;
    g[l] = from[at[l]].g;
  }
}

LOUPE_INLINE void scatter(float* to, Int at, Real x) {
#ifdef __AVX512F__
  _mm512_i64scatter_ps(to, (__m512i)at, _mm512_cvtpd_ps((__m512d)x), sizeof *to);
#else
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) to[at[l]] = float(x[l]);
#endif
}

LOUPE_INLINE void scatter(double* to, Int at, Real x) {
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) to[at[l]] = x[l];
}

template <class T>
LOUPE_INLINE Real gather(const T* from, Int at) {
  Real x;
#pragma GCC unroll 8
  for (int l = 0; l < kLanes; ++l) x[l] = double(from[at[l]]);
  return x;
}

// A score and where it came from (an offset from 0 to below kMaxOffset). `order` puts the larger score first and, among
// equal ones, the smaller offset, so every sort is stable.
constexpr int64_t kMaxOffset = int64_t(1) << 28;

template <class T>
struct Key;

// A float leaves the low 29 bits of a double empty: the offset travels there, and a comparator is one max and one min.
template <>
struct Key<float> {
  Real bits;

  static LOUPE_INLINE Key make(Real x, Int offset) {
    x = x == 0 ? Real{} + 0x1p-200 : x;  // zero with an offset in it would be denormal, and lost where those are flushed
    return {(Real)((Int)x | low_bits(offset, (Int)x))};
  }
  static LOUPE_INLINE Key last() { return {Real{} - __builtin_huge_val()}; }
  LOUPE_INLINE Real value() const { return (Real)((Int)bits & ~(kMaxOffset - 1)); }
  LOUPE_INLINE Int offset() const { return low_bits((Int)bits, (Int)bits); }
  // An offset as it is in a negative score, its complement in a positive one; its own inverse.
  static LOUPE_INLINE Int low_bits(Int offset, Int score) { return (offset ^ ~(score >> 63)) & (kMaxOffset - 1); }
  friend LOUPE_INLINE void order(Key& a, Key& b) {
    const Real high = larger(a.bits, b.bits);
    b.bits = smaller(a.bits, b.bits);
    a.bits = high;
  }
};

template <>
struct Key<double> {
  Real x;
  Int at;

  static LOUPE_INLINE Key make(Real x, Int offset) { return {x, offset}; }
  static LOUPE_INLINE Key last() { return {Real{} - __builtin_huge_val(), Int{} + kMaxOffset}; }
  LOUPE_INLINE Real value() const { return x; }
  LOUPE_INLINE Int offset() const { return at; }
  friend LOUPE_INLINE void order(Key& a, Key& b) {
    const Int swap = (a.x < b.x) | ((a.x == b.x) & (a.at > b.at));
    const Key high{swap ? b.x : a.x, swap ? b.at : a.at};
    b = {swap ? a.x : b.x, swap ? a.at : b.at};
    a = high;
  }
};

}  // namespace loupe::LOUPE_TARGET
