// What the kernels over sorted lines share: problems loaded into padded rows, kLanes lines (rows, or columns) sorted
// together and handed to a sweep, and a batch dealt out to threads in groups of equal problems. A lane never sees its
// neighbours, so the bits depend on the problem alone.
#pragma once

#include <algorithm>
#include <memory>

#include "../core/half.h"
#include "../core/pairwise.h"
#include "buffer.h"
#include "lanes.h"
#include "parallel.h"

namespace loupe::LOUPE_TARGET {
namespace {

// A problem's rows are read and written by whole vectors wherever `room`, the entries left in the problem, allows: lanes
// beyond the row's n are cleared when read, and written again by the next row when written.
template <class T, class In>
LOUPE_INLINE Vec<T> load_wide(const In* from, int64_t n, int64_t room) {
  Vec<T> x{};
  if constexpr (std::is_same_v<In, T>) {
    if (room >= kLanes) x = load<Vec<T>>(from);
    else std::memcpy(&x, from, n * sizeof(T));
  } else {
    for (int l = 0; l < (room >= kLanes ? kLanes : n); ++l) x[l] = Storage<In>::widen(from[l]);
  }
  return n >= kLanes ? x : first_lanes<T>(n) ? x : Vec<T>{};
}

template <class T, class In>
LOUPE_INLINE void store_narrow(In* to, Vec<T> x, int64_t n, int64_t room) {
  if constexpr (std::is_same_v<In, T>) {
    if (room >= kLanes) store(to, x);
    else std::memcpy(to, &x, std::min<int64_t>(n, kLanes) * sizeof(T));
  } else {
    for (int l = 0; l < (room >= kLanes ? kLanes : std::min<int64_t>(n, kLanes)); ++l) to[l] = Storage<In>::narrow(x[l]);
  }
}

// Copies the first M rows and N columns of [rows, ld] into rows padded with 0 (lanes without a column must order like any
// other); says whether all of it is finite.
template <class In, class T>
bool load_matrix(const In* from, int64_t rows, int64_t ld, int64_t M, int64_t N, T* to) {
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Bits;
  constexpr Bits exponent = sizeof(T) == 8 ? Bits(0x7ff0000000000000) : Bits(0x7f800000);
  Vec<Bits> wrong{};
  for (int64_t i = 0; i < M; ++i, from += ld, to += padded(N))
    for (int64_t j = 0; j < N; j += kLanes) {
      const Vec<T> x = load_wide<T>(from + j, N - j, (rows - i) * ld - j);
      wrong |= ((Vec<Bits>)x & exponent) == exponent;
      store(to + j, x);
    }
  Bits any = 0;
  for (int l = 0; l < kLanes; ++l) any |= wrong[l];
  return any == 0;
}

// Where a lane's entries live: entry k at first + k * step; all entries of a lane without a line at `spare`.
struct Places {
  LOUPE_INLINE Places(int64_t line, int64_t lines, int64_t line_step, int64_t entry_step, int64_t spare) {
    Int lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    const Int active = lane < lines - line;
    at = active ? (lane + line) * line_step : Int{} + spare;
    step = active ? Int{} + entry_step : Int{};
  }
  LOUPE_INLINE Int next() {
    const Int here = at;
    at += step;
    return here;
  }
  Int at, step;
};

template <class Sweep, class T>
LOUPE_INLINE void sort_and_sweep(Key<T>* keys, int64_t n, int64_t line, const Sweep& sweep) {
  for (int64_t k = n; k < sorted_size(n); ++k) keys[k] = Key<T>::last();
  sort_lines(keys, n);
  sweep(keys, n, line);
}

// Sorts kLanes rows at a time of [rows, n] and sweeps them: sweep(keys, n, first row). Entry k of row i has the offset
// i * padded(n) + k.
template <class Sweep, class T>
void sweep_rows(const T* scores, int64_t rows, int64_t n, Key<T>* keys, int64_t spare, const Sweep& sweep) {
  const int64_t stride = padded(n);
  for (int64_t i = 0; i < rows; i += kLanes) {
    Places places(i, rows, stride, 1, spare);
    for (int64_t k = 0; k < n; k += kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 8
      for (int l = 0; l < kLanes; ++l) square[l] = load<Vec<T>>(scores + std::min(i + l, rows - 1) * stride + k);
      transpose<1, T>(square, kLaneSequence);
#pragma GCC unroll 8
      for (int l = 0; l < kLanes; ++l)
        if (k + l < n) keys[k + l] = Key<T>::make(__builtin_convertvector(square[l], Real), places.next());
    }
    sort_and_sweep(keys, n, i, sweep);
  }
}

// The same for the columns of [n, columns]; entry k of column j has the offset k * entry_step + j * column_step.
template <class Sweep, class T>
void sweep_columns(const T* scores, int64_t n, int64_t columns, int64_t column_step, int64_t entry_step, Key<T>* keys,
                   int64_t spare, const Sweep& sweep) {
  const int64_t stride = padded(columns);
  for (int64_t j = 0; j < columns; j += kLanes) {
    Places places(j, columns, column_step, entry_step, spare);
    for (int64_t k = 0; k < n; ++k) keys[k] = Key<T>::make(load_real(scores + k * stride + j), places.next());
    sort_and_sweep(keys, n, j, sweep);
  }
}

// Calls work(scratch, first, count, M, N) for runs of equal problems.
template <class Scratch, class Work, class... More>
void for_each_group(const PairwiseCall& call, int threads, const Work& work, More... more) {
  constexpr int64_t kGroup = 1024;  // entries whose scratch stays in the first-level cache
  constexpr int64_t kChunk = 8192;  // entries that pay for a thread
  const int64_t area = std::max<int64_t>(call.M * call.N, 1);
  const int64_t group = std::max<int64_t>(kGroup / area, 1), chunk = std::max<int64_t>(kChunk / area, 1);
  const auto rows = [&](int64_t b) { return call.region_lengths ? call.region_lengths[b] : call.M; };
  const auto cols = [&](int64_t b) { return call.phrase_lengths ? call.phrase_lengths[b] : call.N; };
  parallel_chunks(call.B, chunk, threads, [&] {
    return [&, scratch = std::make_unique<Scratch>(call, std::min(group, call.B), more...)](int64_t begin, int64_t end) {
      while (begin < end) {
        int64_t count = 1;
        while (count < group && begin + count < end && rows(begin + count) == rows(begin) &&
               cols(begin + count) == cols(begin))
          ++count;
        work(*scratch, begin, count, rows(begin), cols(begin));
        begin += count;
      }
    };
  });
}

}  // namespace
}  // namespace loupe::LOUPE_TARGET
