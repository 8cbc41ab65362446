// Moments of coalitions on a GPU. Forward, a warp sums a tile of pairs over a part of one group's rows, of one channel, a run
// of rows at a time: in float32 by tensor cores, which multiply the rows' bits with the columns' values. A value is the
// sum of three bfloat16 numbers, exactly. Small games are cut into many parts of rows, so that the GPU is busy; a second
// kernel adds these in order. Backward, a warp reads what reaches the pairs of a coalition. No atomics: the same bits
// every time.

#include "moments.h"

#include "../core/half.h"
#include "launch.h"

namespace loupe {
namespace {

constexpr int kTile = 32, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kStep = 16;  // rows of a tensor core's product
constexpr int kRun = 32;   // rows summed before a rounding error is worth keeping

// Of a tile's rows, 16 at a time: how many times a warp has them.
template <class T>
constexpr int kHalves = sizeof(T) == sizeof(float) ? 2 : 1;

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
  int tiles, pairs, halves, parts;
  int64_t items;

  static Plan of(const MomentsCall& call) {
    constexpr int64_t kLeast = 128;  // rows that pay for a warp
    Plan plan{};
    plan.tiles = (call.n + kTile - 1) / kTile;
    plan.pairs = plan.tiles * (plan.tiles + 1) / 2;
    plan.halves = call.dtype == DType::f64 ? 2 / kHalves<double> : 2 / kHalves<float>;
    const int64_t whole = call.C * call.G * plan.pairs * plan.halves, wanted = int64_t(multiprocessors()) * 16 / whole;
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

// Sums of a tile that a warp has: lane l, of each of `kHalves` 16 rows and 4 x 8 columns, those of rows l / 4 and l / 4 + 8 and
// of columns 2 (l % 4) and the next: [half][columns / 8][2 (row >= 8) + column % 2].
template <class T>
using Sums = T[kHalves<T>][4][4];

struct Tile {
  int row, column, first_half;  // in tiles; of the row tile's 16 rows
};

template <class T>
__device__ bool finite(T x) {
  return x - x == 0;
}

// Adds coalitions begin .. end - 1 of a channel, one after another; `wild`: those alone whose value is not finite.
template <class T>
__device__ void add_each(const MomentsCall& call, const void* values, int64_t c, Tile tile, int64_t begin, int64_t end,
                         bool wild, Sums<T>& sums) {
  const int lane = int(threadIdx.x) % 32;
  for (int64_t k = begin; k < end; ++k) {
    const uint32_t rows = members(call, k, tile.row) >> (16 * tile.first_half + lane / 4);
    const uint32_t columns = members(call, k, tile.column) >> (lane % 4 * 2);
    const T value = load_wide<T>(values, call.dtype, c * call.S + k);
    if (wild && finite(value)) continue;
#pragma unroll
    for (int half = 0; half < kHalves<T>; ++half)
#pragma unroll
      for (int t = 0; t < 4; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (rows >> (16 * half + e / 2 * 8) & columns >> (8 * t + e % 2) & 1) sums[half][t][e] += value;
  }
}

__device__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
__device__ float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The lowest bits of byte `which` of two words, as the halves of a word.
__device__ uint32_t two(uint32_t low, uint32_t high, uint32_t which) {
  return __byte_perm(low, high, which | (4 + which) << 8) & 0x00010001u;
}

// A run of at most kRun, by tensor cores. These would multiply what is not finite with zero too: it is added by itself.
__device__ void add_run(const MomentsCall& call, const void* values, int64_t c, Tile tile, int64_t begin, int64_t end,
                        Sums<float>& sums) {
  if (!kTensorCores) return add_each(call, values, c, tile, begin, end, false, sums);
  const int lane = int(threadIdx.x) % 32, here = int(end - begin);
  const int parts = call.dtype == DType::f32 ? 3 : call.dtype == DType::f16 ? 2 : 1;
  const uint32_t* halves = reinterpret_cast<const uint32_t*>(call.coalitions + begin * call.words());  // of 64-bit words
  bool wild = false;
#pragma unroll
  for (int step = 0; step < kRun / kStep; ++step) {
    uint32_t rows[4], columns[4], part[3][2];
    float value[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = kStep * step + lane % 4 * 2 + e / 2 * 8 + e % 2, k = at < here ? at : here - 1;
      const float x = load_wide<float>(values, call.dtype, c * call.S + begin + k);
      wild = wild || !finite(x);
      value[e] = at < here && finite(x) ? x : 0.f;
      rows[e] = halves[k * 2 * call.words() + tile.row] >> (lane / 4);
      columns[e] = halves[k * 2 * call.words() + tile.column] >> (lane / 4);
    }
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      float low = value[e], high = value[e + 1];
#pragma unroll
      for (int p = 0; p < 3; ++p) {  // the next 8 binary digits of both
        const uint32_t low_part = bits_of(low) & 0xffff0000u, high_part = bits_of(high) & 0xffff0000u;
        part[p][e / 2] = __byte_perm(low_part, high_part, 0x7632);
        low -= from_bits(low_part);
        high -= from_bits(high_part);
      }
    }
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        a[half][e] = two(rows[e / 2 * 2], rows[e / 2 * 2 + 1], 2 * half + e % 2) * 0x3f80u;  // 1 in bfloat16
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const uint32_t mask[2] = {two(columns[0], columns[1], t) * 0xffffu, two(columns[2], columns[3], t) * 0xffffu};
#pragma unroll
      for (int p = 2; p >= 0; --p)  // the small ones first
        if (p < parts) {
          const uint32_t b[2] = {part[p][0] & mask[0], part[p][1] & mask[1]};
#pragma unroll
          for (int half = 0; half < 2; ++half) LOUPE_MULTIPLY_ADD(sums[half][t], a[half], b);
        }
    }
  }
  for (int d = 1; d <= 2; d *= 2) wild = __shfl_xor_sync(0xffffffffu, int(wild), d, 32) || wild;
  if (wild) add_each(call, values, c, tile, begin, end, true, sums);
}
__device__ void add_run(const MomentsCall& call, const void* values, int64_t c, Tile tile, int64_t begin, int64_t end,
                        Sums<double>& sums) {
  add_each(call, values, c, tile, begin, end, false, sums);
}

// partial[part, c, g, i, j] for i's tile not after j's.
template <class T>
__global__ void __launch_bounds__(kThreads, 3) parts_kernel(MomentsCall call, Plan plan, const void* values, T* partial) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t item = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; item < plan.items; item += warps) {
    Tile tile{0, int(item / plan.halves % plan.pairs), int(item % plan.halves)};
    while (tile.column >= plan.tiles - tile.row) tile.column -= plan.tiles - tile.row++;
    tile.column += tile.row;
    const int64_t rest = item / plan.halves / plan.pairs, part = rest % plan.parts, matrix = rest / plan.parts;
    const int64_t c = matrix / call.G;
    const auto rows = call.rows(matrix % call.G);
    const int64_t count = rows.end - rows.begin;
    const int64_t begin = rows.begin + count * part / plan.parts, end = rows.begin + count * (part + 1) / plan.parts;
    Sum<T> total[kHalves<T>][4][4];
    for (int64_t first = begin; first < end; first += kRun) {
      Sums<T> sums = {};
      add_run(call, values, c, tile, first, end - first < kRun ? end : first + kRun, sums);
#pragma unroll
      for (int half = 0; half < kHalves<T>; ++half)
#pragma unroll
        for (int t = 0; t < 4; ++t)
#pragma unroll
          for (int e = 0; e < 4; ++e) total[half][t][e].add(sums[half][t][e]);
    }
    T* to = partial + (part * call.C * call.G + matrix) * call.n * call.n;
#pragma unroll
    for (int half = 0; half < kHalves<T>; ++half)
#pragma unroll
      for (int t = 0; t < 4; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = tile.row * kTile + 16 * (tile.first_half + half) + lane / 4 + e / 2 * 8;
          const int j = tile.column * kTile + 8 * t + lane % 4 * 2 + e % 2;
          if (i < call.n && j < call.n) to[int64_t(i) * call.n + j] = total[half][t][e].get();
        }
  }
}

template <class T>
__global__ void total_kernel(MomentsCall call, Plan plan, const T* partial, void* out) {
  const int64_t area = int64_t(call.n) * call.n, all = call.C * call.G * area;
  for (int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x; e < all; e += int64_t(gridDim.x) * kThreads) {
    const int64_t i = e % area / call.n, j = e % call.n;
    const int64_t from = e - e % area + (i < j ? i * call.n + j : j * call.n + i);
    Sum<T> total;
    for (int part = 0; part < plan.parts; ++part) total.add(partial[part * all + from]);
    store_narrow(out, call.dtype, e, total.get());
  }
}

template <class T>
__global__ void backward_kernel(MomentsCall call, const void* grad, void* grad_values) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, warps = int64_t(gridDim.x) * kWarps;
  for (int64_t item = warp; item < call.C * call.S; item += warps) {
    const int64_t c = item / call.S, k = item % call.S, g = call.group_of(k);
    int64_t row = (c * call.G + (g < 0 ? 0 : g)) * call.n * call.n;
    Sum<T> total;
    for (int i = 0; i < call.n && g >= 0; ++i, row += call.n)
      if (members(call, k, i / 32) >> (i % 32) & 1) {
        T run = 0;
        for (int j = lane; j < call.n; j += 32)
          if (members(call, k, j / 32) >> lane & 1) run += load_wide<T>(grad, call.dtype, row + j);
        total.add(run);
      }
    T sum = total.get();
    for (int d = 16; d >= 1; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d, 32);
    if (lane == 0) store_narrow(grad_values, call.dtype, item, sum);
  }
}

// Calls work(x) with an x of the type that the call is computed in.
template <class Work>
void for_compute(const MomentsCall& call, const Work& work) {
  if (call.C * call.S * call.G == 0) return;
  if (call.dtype == DType::f64) work(double{});
  else work(float{});
}

}  // namespace

int64_t moments_scratch_bytes_cuda(const MomentsCall& call) {
  int64_t bytes = 0;
  for_compute(call, [&](auto type) { bytes = Plan::of(call).parts * call.C * call.G * call.n * call.n * int64_t(sizeof type); });
  return bytes;
}

void moments_forward_cuda(const MomentsCall& call, const void* values, void* out, void* scratch, void* stream) {
  for_compute(call, [&](auto type) {
    typedef decltype(type) T;
    const Plan plan = Plan::of(call);
    const int64_t all = call.C * call.G * call.n * call.n;
    LOUPE_LAUNCH((parts_kernel<T>), grid((plan.items + kWarps - 1) / kWarps), kThreads, 0, stream, call, plan, values,
                 static_cast<T*>(scratch));
    LOUPE_LAUNCH((total_kernel<T>), grid((all + kThreads - 1) / kThreads), kThreads, 0, stream, call, plan,
                 static_cast<const T*>(scratch), out);
  });
}

void moments_backward_cuda(const MomentsCall& call, const void* grad, void* grad_values, void* stream) {
  for_compute(call, [&](auto type) {
    LOUPE_LAUNCH(backward_kernel<decltype(type)>, grid((call.C * call.S + kWarps - 1) / kWarps), kThreads, 0, stream, call, grad,
                 grad_values);
  });
}

}  // namespace loupe
