// Moments of coalitions on a GPU. Forward, a block sums a tile of 32 x 32 pairs over a part of one group's rows, of one
// channel: the lanes of a warp are the tile's columns, and whether a row of the tile is in a coalition is the same for all
// of them. Small games are cut into several parts of rows, so that the GPU is busy; a second kernel adds these in order.
// Backward, a warp reads what reaches the pairs of a coalition. No atomics: the same bits every time.

#include "moments.h"

#include "../core/half.h"
#include "launch.h"

namespace loupe {
namespace {

constexpr int kTile = 32, kWarps = 4, kRows = kTile / kWarps;  // rows of a tile, a warp
constexpr int kThreads = 32 * kWarps, kChunk = kThreads;       // samples in shared memory, one read by each thread
constexpr int kRun = 16;  // samples summed in a row before a rounding error is worth keeping: float32 loses 16 * 2^-24

// A sum as if in twice the precision: the rounding error of every addition is kept (Knuth's two-sum).
template <class T>
struct Sum {
  T high = 0, low = 0;

  __device__ void add(T x) {
    const T next = high + x, added = next - high;
    low += (high - (next - added)) + (x - added);
    high = next;
  }
  __device__ T get() const { return high - high == 0 ? high + low : high; }  // not finite: low is NaN
};

// How a call is cut; `parts` sums of each entry go through scratch.
struct Plan {
  int tiles, pairs, parts;
  int64_t items;

  static Plan of(const MomentsCall& call) {
    constexpr int64_t kLeast = 256;  // rows that pay for a block
    Plan plan{};
    plan.tiles = (call.n + kTile - 1) / kTile;
    plan.pairs = plan.tiles * (plan.tiles + 1) / 2;
    const int64_t whole = call.C * call.G * plan.pairs, wanted = int64_t(multiprocessors()) * 8 / whole;
    const int64_t most = call.S / (call.G * kLeast);
    plan.parts = int(wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most);
    plan.items = whole * plan.parts;
    return plan;
  }
};

unsigned grid(int64_t wanted) {
  const int64_t most = int64_t(multiprocessors()) * 64;
  return unsigned(wanted < most ? wanted : most);
}

__device__ uint32_t members(const MomentsCall& call, int64_t k, int tile) {
  return uint32_t(call.coalitions[k * call.words() + tile / 2] >> (tile % 2 * 32));
}

// partial[part, c, g, i, j] for i's tile not after j's.
template <class In, class T>
__global__ void parts_kernel(MomentsCall call, Plan plan, const In* values, T* partial) {
  __shared__ uint32_t row_bits[kChunk], column_bits[kChunk];
  __shared__ T value[kChunk];
  const int thread = int(threadIdx.x), lane = thread % 32, first_row = thread / 32 * kRows;
  for (int64_t item = blockIdx.x; item < plan.items; item += gridDim.x) {
    int row_tile = 0, column_tile = int(item % plan.pairs);
    while (column_tile >= plan.tiles - row_tile) column_tile -= plan.tiles - row_tile++;
    column_tile += row_tile;
    const int64_t part = item / plan.pairs % plan.parts, matrix = item / plan.pairs / plan.parts, c = matrix / call.G;
    const auto rows = call.rows(matrix % call.G);
    const int64_t count = rows.end - rows.begin;
    const int64_t begin = rows.begin + count * part / plan.parts, end = rows.begin + count * (part + 1) / plan.parts;
    Sum<T> total[kRows];
    for (int64_t first = begin; first < end; first += kChunk) {
      const int here = int(end - first < kChunk ? end - first : kChunk);
      if (thread < here) {
        row_bits[thread] = members(call, first + thread, row_tile);
        column_bits[thread] = members(call, first + thread, column_tile);
        value[thread] = Storage<In>::widen(values[c * call.S + first + thread]);
      }
      __syncthreads();
      for (int s = 0; s < here; s += kRun) {
        T run[kRows] = {};
        for (int t = s; t < here && t < s + kRun; ++t) {
          const uint32_t mine = row_bits[t] >> first_row;
          const T x = column_bits[t] >> lane & 1 ? value[t] : T(0);
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            if (mine >> r & 1) run[r] += x;
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) total[r].add(run[r]);
      }
      __syncthreads();
    }
    T* to = partial + (part * call.C * call.G + matrix) * call.n * call.n;
    const int i = row_tile * kTile + first_row, j = column_tile * kTile + lane;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (i + r < call.n && j < call.n) to[int64_t(i + r) * call.n + j] = total[r].get();
  }
}

template <class In, class T>
__global__ void total_kernel(MomentsCall call, Plan plan, const T* partial, In* out) {
  const int64_t area = int64_t(call.n) * call.n, all = call.C * call.G * area;
  for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < all; e += int64_t(gridDim.x) * kThreads) {
    const int64_t i = e % area / call.n, j = e % call.n;
    const int64_t from = e - e % area + (i < j ? i * call.n + j : j * call.n + i);
    Sum<T> total;
    for (int part = 0; part < plan.parts; ++part) total.add(partial[part * all + from]);
    out[e] = Storage<In>::narrow(total.get());
  }
}

template <class In>
__global__ void backward_kernel(MomentsCall call, const In* grad, In* grad_values) {
  typedef typename Storage<In>::Compute T;
  const int lane = int(threadIdx.x) % 32;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, warps = int64_t(gridDim.x) * kWarps;
  for (int64_t item = warp; item < call.C * call.S; item += warps) {
    const int64_t c = item / call.S, k = item % call.S, g = call.group_of(k);
    const In* row = grad + (c * call.G + (g < 0 ? 0 : g)) * call.n * call.n;
    Sum<T> total;
    for (int i = 0; i < call.n && g >= 0; ++i, row += call.n)
      if (members(call, k, i / 32) >> (i % 32) & 1) {
        T run = 0;
        for (int j = lane; j < call.n; j += 32)
          if (members(call, k, j / 32) >> lane & 1) run += Storage<In>::widen(row[j]);
        total.add(run);
      }
    T sum = total.get();
    for (int d = 16; d >= 1; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d, 32);
    if (lane == 0) grad_values[item] = Storage<In>::narrow(sum);
  }
}

}  // namespace

int64_t moments_scratch_bytes_cuda(const MomentsCall& call) {
  if (call.C * call.S * call.G == 0) return 0;
  const int64_t size = call.dtype == DType::f64 ? sizeof(double) : sizeof(float);
  return Plan::of(call).parts * call.C * call.G * call.n * call.n * size;
}

void moments_forward_cuda(const MomentsCall& call, const void* values, void* out, void* scratch, void* stream) {
  if (call.C * call.S * call.G == 0) return;
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    typedef typename Storage<In>::Compute T;
    const Plan plan = Plan::of(call);
    const int64_t all = call.C * call.G * call.n * call.n;
    LOUPE_LAUNCH((parts_kernel<In, T>), grid(plan.items), kThreads, 0, stream, call, plan, static_cast<const In*>(values),
                 static_cast<T*>(scratch));
    LOUPE_LAUNCH((total_kernel<In, T>), grid((all + kThreads - 1) / kThreads), kThreads, 0, stream, call, plan,
                 static_cast<const T*>(scratch), static_cast<In*>(out));
  });
}

void moments_backward_cuda(const MomentsCall& call, const void* grad, void* grad_values, void* stream) {
  if (call.C * call.S * call.G == 0) return;
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    LOUPE_LAUNCH(backward_kernel<In>, grid((call.C * call.S + kWarps - 1) / kWarps), kThreads, 0, stream, call,
                 static_cast<const In*>(grad), static_cast<In*>(grad_values));
  });
}

}  // namespace loupe
