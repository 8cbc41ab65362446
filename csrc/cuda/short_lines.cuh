// Lines of up to 64 entries in the registers of one thread: its keys, their sort, and the block that has them.
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

struct Divisor {  // by d = 1 .. 64, of numbers up to 128 d
  int inverse;
  static Divisor of(int d) { return {((1 << 20) + d - 1) / d}; }
  __device__ int divide(int x) const { return (x * inverse) >> 20; }
};

// Calls work(k, x[k]) for every k < count by the block's threads. A lane takes one number at a time, not sixteen bytes: those
// would go to shared memory four lanes to a bank.
template <class In, class Work>
__device__ inline void for_each_loaded(const In* x, int count, const Work& work) {
  constexpr int kAhead = 4;  // loads under way before the first is used
  const int threads = int(blockDim.x);
#pragma unroll 1
  for (int first = int(threadIdx.x); first < count; first += kAhead * threads) {
    In loaded[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (first + a * threads < count) loaded[a] = x[first + a * threads];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (first + a * threads < count) work(first + a * threads, Storage<In>::widen(loaded[a]));
  }
}

// An address in shared memory that stays in one register: from a pointer nvcc makes it anew for every access.
template <class T>
struct Shared {
#ifdef __CUDACC__
  unsigned start;
  __device__ static Shared of(T* x) {
    unsigned start = unsigned(__cvta_generic_to_shared(x));
    asm volatile("" : "+r"(start));
    return {start};
  }
  __device__ T& at_byte(int at) const { return *static_cast<T*>(__cvta_shared_to_generic(start + at)); }
#else
  unsigned char* start;
  static Shared of(T* x) { return {reinterpret_cast<unsigned char*>(x)}; }
  T& at_byte(int at) const { return *reinterpret_cast<T*>(emulated::touch(start + at, sizeof(T))); }
#endif
  __device__ T& operator[](int k) const { return at_byte(k * int(sizeof(T))); }
};

// A block of a kernel with a thread per line takes several problems of M, N <= 64 at a time: its first warps have their rows,
// its others their columns. A tile holds a number per entry, each problem's rows `stride` apart, and room behind them for
// what is no entry.
struct ShortBlock {
  static constexpr int kThreads = 128, kLongest = 64;
  int problems;              // at a time
  int row_threads, threads;
  int stride, size, all;     // floats of a tile's rows, of its problems, and of all of them
  int tables;                // one for all problems, or one for each
  int row_size, col_size;    // of the networks
  Divisor by_rows, by_columns;

  static bool fits(const PairwiseCall& call) { return call.dtype != DType::f64 && call.M <= kLongest && call.N <= kLongest; }
  static ShortBlock of(const PairwiseCall& call) {
    const int M = int(call.M), N = int(call.N);
    ShortBlock x{};
    for (int count = 1, rows, cols; rows = (count * M + 31) / 32 * 32, cols = (count * N + 31) / 32 * 32, rows + cols <= kThreads; ++count)
      if (x.problems * (rows + cols) <= count * x.threads || count == 1) {  // as few idle threads as can be
        x.problems = count;
        x.row_threads = rows;
        x.threads = rows + cols;
      }
    x.stride = (N + 1) | 1;  // odd: the lanes of a warp that walk along rows hit different banks; one column is no entry's
    x.size = M * x.stride;
    x.all = x.problems * x.size;
    x.tables = call.region_lengths || call.phrase_lengths ? x.problems : 1;
    x.row_size = network_size(N);
    x.col_size = network_size(M);
    x.by_rows = Divisor::of(M);
    x.by_columns = Divisor::of(N);
    return x;
  }
  int tile_floats(int N) const { return all + problems * N; }
};

// The problems that a block has at a time: their lengths, and `fine`, whether those are right and the scores finite.
struct ShortProblems {
  const PairwiseCall& call;
  const ShortBlock& block;
  int M, N;
  int *rows, *cols, *fine;

  __device__ bool ragged() const { return call.region_lengths || call.phrase_lengths; }
  __device__ void open(int64_t first) const {
    const int b = int(threadIdx.x);
    if (b >= block.problems || first + b >= call.B) return;
    const int64_t m = call.region_lengths ? call.region_lengths[first + b] : M;
    const int64_t n = call.phrase_lengths ? call.phrase_lengths[first + b] : N;
    const bool valid = m >= 0 && m <= M && n >= 0 && n <= N, any = valid && m > 0 && n > 0;
    rows[b] = any ? int(m) : 0;
    cols[b] = any ? int(n) : 0;
    fine[b] = valid;
  }
  // Where entry e of the problems' dense matrices is in a tile, and which problem it is of.
  __device__ int at(int e) const { return e + block.by_columns.divide(e) * (block.stride - N); }
  __device__ int of(int e) const { return block.by_rows.divide(block.by_columns.divide(e)); }
  __device__ bool outside(int e) const {
    const int row = block.by_columns.divide(e), b = block.by_rows.divide(row);
    return row - b * M >= rows[b] || e - row * N >= cols[b];
  }
  __device__ float outside_value(int b) const { return fine[b] || rows[b] ? 0.0f : NAN; }  // NaN: the lengths are wrong
  // Puts score x of entry e into a tile, 0 if it is not finite: a line must sort. Says whether its problem may be fine.
  __device__ bool put(int e, float x, Shared<float> tile, bool ragged) const {
    const bool number = fabsf(x) < kBeyond;
    tile[at(e)] = number ? x : 0.0f;
    return number || (ragged && outside(e));
  }
};

// The line of a thread: of which problem, which of its rows or columns, and where that begins in a tile.
struct ShortThread {
  bool is_row;
  int problem, place, base;

  __device__ static ShortThread of(const ShortBlock& block, int M, int N) {
    const int thread = int(threadIdx.x);
    const bool is_row = thread < block.row_threads;
    const int order = is_row ? thread : thread - block.row_threads;
    const int problem = (is_row ? block.by_rows : block.by_columns).divide(order), place = order - problem * (is_row ? M : N);
    return {is_row, problem, place, problem * block.size + (is_row ? place * block.stride : place)};
  }
};

// A thread's line: n entries `step` floats apart in a tile, of the S that are sorted; those that are none have the place `none`.
struct ShortLine {
  int n, step, none;
};

template <int S, bool stable, class Key>
__device__ inline void take_line(Key* key, Shared<float> scores, ShortLine line) {
#pragma unroll
  for (int k = 0; k < S; ++k)
    key[k] = k < line.n ? Key::template of<stable>(scores[k * line.step], k, line.step)
                        : Key::template of<stable>(-kBeyond, 1, line.none);
  Key::template sort<S, stable>(key);
}

// How many blocks of a kernel an SM is to hold at once, which bounds a thread's registers.
template <int P>
constexpr int blocks_of_an_sm() {
  return P <= 16 ? 4 : P <= 32 ? 3 : 2;
}

}  // namespace
}  // namespace loupe
