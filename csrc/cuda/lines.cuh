// What the kernels over sorted lines (rows, or columns) share: a block's memory, its lines, and the warps that sort them.
#pragma once

#include <cmath>

#include "../core/half.h"
#include "../core/pairwise.h"
#include "launch.h"
#include "sort.cuh"

namespace loupe {
namespace {

template <class T>
__device__ T warp_sum(T x) {
  for (int d = 16; d >= 1; d /= 2) x += __shfl_xor_sync(kWarp, x, d, 32);
  return x;
}

// LineWeights::of by one warp.
__device__ LineWeights weights_by_warp(int lines, int n, double p, int lane) {
  LineWeights line = LineWeights::start(lines, n, p);
  const double last = line.term(lines - 1);
  double sum = 0, excess = 0;
  for (int t = lane; t < lines; t += 32) {
    sum += line.term(t);
    excess += line.term(t) - last;
  }
  line.finish(warp_sum(sum), warp_sum(excess));
  return line;
}

template <int width, class T>
__device__ T sum_of_lanes_after(T x, int lane) {
  for (int d = 1; d < width; d *= 2) {
    const T more = __shfl_down_sync(kWarp, x, d, width);
    if (lane + d < width) x += more;
  }
  x = __shfl_down_sync(kWarp, x, 1, width);
  return lane == width - 1 ? T(0) : x;
}

template <int width, class T>
__device__ T sum_of_lanes_before(T x, int lane) {
  for (int d = 1; d < width; d *= 2) {
    const T more = __shfl_up_sync(kWarp, x, d, width);
    if (lane >= d) x += more;
  }
  x = __shfl_up_sync(kWarp, x, 1, width);
  return lane == 0 ? T(0) : x;
}

// A line with a NaN does not sort: keys are lost, and padding takes a real place. Says whether x is finite; if not, 0 is put.
template <class T>
__device__ bool put_finite(T x, T& to) {
  const bool finite = x - x == 0;
  to = finite ? x : T(0);
  return finite;
}

// The longest lines of a kernel that has them in registers: longer ones have kernels of their own, whose lanes hold more.
constexpr int kShort = 64, kLong = 1024, kPage = 32 * 35, kVeryLong = 32 * 63;

// Where place k of a line is in a table: lanes with `items` places each, a power of two, find theirs in different banks.
__host__ __device__ inline int padded(int k) { return k + k / 32; }

// A problem's lines in one direction: entry e of line l is at [l * line_step + e * entry_step] of the tile's matrices.
template <class T, class Table>
struct Lines {
  int count, n, line_step, entry_step;
  const T* scores;
  const Table* table;
  __device__ int at(int line, int entry) const { return line * line_step + entry * entry_step; }
};

// Sorts every line, a warp or a part of one each, and has sweep(sorted, lines, line, lane, real) called by its lanes.
template <int W, int I, class T, class Table, class Sweep>
__device__ void sweep_in_registers(const Lines<T, Table>& lines, const Sweep& sweep) {
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % W, part = threadIdx.x % 32 / W;
  for (int first = warp * (32 / W); first < lines.count; first += warps * (32 / W)) {
    const int line = first + part;
    const bool real = line < lines.count;
    RegisterLine<W, I, T> sorted;
#pragma unroll
    for (int t = 0; t < I; ++t) {
      const int k = t * W + lane;
      sorted.key[t] = {real && k < lines.n ? lines.scores[lines.at(line, k)] : T(-INFINITY), k};
    }
    sorted.sort(lane);
    sweep(sorted, lines, line, lane, real);
  }
}

// The same for lines that are merged.
template <int I, class T, class Table, class Sweep>
__device__ void sweep_merged(const Lines<T, Table>& lines, const Sweep& sweep, Key<T>* keys) {
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  MergedLine<I, T> sorted{MergedLine<I, T>::each_of(lines.n), keys + warp * MergedLine<I, T>::memory_of(lines.n)};
  for (int line = warp; line < lines.count; line += warps) {
#pragma unroll
    for (int t = 0; t < I; ++t) {
      const int k = sorted.rank(lane, t);
      sorted.key[t] = {k < lines.n ? lines.scores[lines.at(line, k)] : T(-INFINITY), k};
    }
    sorted.sort(lane);
    sweep(sorted, lines, line, lane, true);
  }
}

// The same for lines that are too long for registers.
template <class T, class Table, class Sweep>
__device__ void sweep_in_memory(const Lines<T, Table>& lines, const Sweep& sweep, Key<T>* keys) {
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  int size = 2 * kLong;
  while (size < lines.n) size *= 2;
  for (int line = warp; line < lines.count; line += warps) {
    MemoryLine<T> sorted{size / 32, keys + warp * size};
    for (int k = lane; k < size; k += 32)
      sorted.keys[k] = {k < lines.n ? lines.scores[lines.at(line, k)] : T(-INFINITY), k};
    sorted.sort(lane);
    sweep(sorted, lines, line, lane, true);
    __syncwarp();
  }
}

template <int kMost, class T, class Table, class Sweep>
__device__ void sweep_lines(const Lines<T, Table>& lines, const Sweep& sweep, Key<T>* keys) {
  if constexpr (kMost == kShort) {
    if (lines.n <= 8) sweep_in_registers<8, 1>(lines, sweep);
    else if (lines.n <= 16) sweep_in_registers<16, 1>(lines, sweep);
    else if (lines.n <= 32) sweep_in_registers<32, 1>(lines, sweep);
    else sweep_in_registers<32, 2>(lines, sweep);
  } else if constexpr (kMost == kLong) {
    if (lines.n <= 8) sweep_in_registers<8, 1>(lines, sweep);
    else if (lines.n <= 64) sweep_in_registers<32, 2>(lines, sweep);
    else if (lines.n <= 128) sweep_in_registers<32, 4>(lines, sweep);
    else if (lines.n <= 256) sweep_in_registers<32, 8>(lines, sweep);
    else if (lines.n <= 512) sweep_in_registers<32, 16>(lines, sweep);
    else if (lines.n <= kLong) sweep_in_registers<32, kLong / 32>(lines, sweep);
    else sweep_in_memory(lines, sweep, keys);
  } else {
    sweep_merged<kMost / 32>(lines, sweep, keys);
  }
}

// Threads of a block: few enough, where lines are long, that each has the registers for 32 keys, or 64.
template <class T>
constexpr int threads_at_most(int most) {
  return most == kLong && sizeof(T) < sizeof(double) ? 384 : 256;
}
// Bounds of a kernel over lines: threads of a block, and blocks that are to be on a multiprocessor at once.
#define LOUPE_LINE_BOUNDS(T, kMost) __launch_bounds__(threads_at_most<T>(kMost), kMost == kShort ? 2 : 1)

// Sums of the rows of a matrix, a warp each, and of its columns, of which `partial` takes a number per thread.
template <class T>
__device__ void sum_rows(const T* matrix, int M, int N, int stride, T* sums) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < M; i += blockDim.x / 32) {
    T sum = 0;
    for (int j = lane; j < N; j += 32) sum += matrix[i * stride + j];
    sum = warp_sum(sum);
    if (lane == 0) sums[i] = sum;
  }
}
template <class T>
__device__ void sum_columns(const T* matrix, int M, int N, int stride, T* sums, T* partial) {
  const int threads = blockDim.x, thread = threadIdx.x, parts = threads > N ? threads / N : 1;
  for (int first = 0; first < N; first += threads) {
    const int columns = N - first < threads ? N - first : threads, j = thread % columns, part = thread / columns;
    if (part < parts) {
      T sum = 0;
      for (int i = part; i < M; i += parts) sum += matrix[i * stride + first + j];
      partial[part * columns + j] = sum;
    }
    __syncthreads();
    if (thread < columns) {
      T sum = 0;
      for (int p = 0; p < parts; ++p) sum += partial[p * columns + thread];
      sums[first + thread] = sum;
    }
    __syncthreads();
  }
}

// Where a block keeps its problem: tables and what belongs to lines in shared memory, matrices there or in scratch.
struct Layout {
  int stride, entries;       // of a matrix
  int table;                 // entries of a table's array
  int keys;                  // of a warp, in memory
  int most;                  // kShort, kLong, kPage or kVeryLong: which kernel has the problem's lines
  int warps;
  bool in_shared;
  int64_t matrix_bytes, shared_bytes;

  template <class T>
  static Layout of(const PairwiseCall& call, int arrays, int matrices, int64_t more_entries, int per_thread = 0,
                   int most = kLong) {
    Layout x{};
    const int M = int(call.M), N = int(call.N), longest = M > N ? M : N;
    x.stride = N | 1;  // odd: the lanes of a warp that walk down a column hit different banks
    x.entries = M * x.stride;
    x.table = padded(longest);
    x.most = longest <= kShort ? kShort : longest <= kLong || most < longest ? kLong : longest <= kPage ? kPage : kVeryLong;
    if (x.most > kLong) x.keys = MergedLine<kVeryLong / 32, T>::memory_of(longest);
    else if (longest > x.most)
      for (x.keys = 2 * kLong; x.keys < longest;) x.keys *= 2;
    x.matrix_bytes = ((int64_t(x.entries) * matrices + more_entries) * sizeof(T) + 15) / 16 * 16;
    x.warps = x.most == kLong ? threads_at_most<T>(kLong) / 32 : longest > 16 ? 8 : 4;
    const int64_t tables = (arrays * int64_t(x.table) + 32 * x.warps * per_thread) * sizeof(T) + 64;
    const int64_t room = max_shared_bytes() - 1024;  // the driver keeps some
    while (x.warps > 1 && tables + x.warps * x.keys * int64_t(sizeof(Key<T>)) > room) x.warps /= 2;
    x.shared_bytes = tables + x.warps * x.keys * int64_t(sizeof(Key<T>));
    if (x.shared_bytes > room)
      throw std::invalid_argument("scores: expected shorter rows and columns for this GPU's shared memory, got " +
                                  std::to_string(call.M) + " x " + std::to_string(call.N));
    x.in_shared = x.shared_bytes + x.matrix_bytes <= room;
    if (x.in_shared) x.shared_bytes += x.matrix_bytes;
    return x;
  }
  int64_t blocks(int64_t B) const {
    constexpr int64_t kScratch = int64_t(256) << 20;
    int64_t most = int64_t(multiprocessors()) * 32;  // a block that does several problems prepares its tables once
    if (!in_shared) most = most < kScratch / matrix_bytes ? most : kScratch / matrix_bytes;
    most = most < 1 ? 1 : most;
    return B < most ? B : most;
  }
};

template <class T>
__device__ T* take(unsigned char*& memory, int64_t count) {
  T* taken = reinterpret_cast<T*>(memory);
  memory += (count * sizeof(T) + 7) / 8 * 8;
  return taken;
}

}  // namespace
}  // namespace loupe
