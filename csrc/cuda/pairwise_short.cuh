// Exact pair interactions of problems with M, N <= 64: a thread per line. A block takes several problems of the batch at a
// time; its first warps take their rows, its others their columns, both at once. Forward, every thread sorts its line, puts
// G of its entries into a tile of its direction, sums the other direction's G over its line, and puts F + G less that sum in
// place of its G; the result is the sum of both tiles. Backward, it gathers the gradient in its order and puts the line's
// part into its tile. No atomics, and a problem's arithmetic does not depend on its place in a block: the same bits always.
#pragma once

#include "short_lines.cuh"

namespace loupe {
namespace {

struct Divisor {  // by 1 .. 64, of numbers up to 4096
  int inverse;
  static Divisor of(int d) { return {((1 << 18) + d - 1) / d}; }
  __device__ int divide(int x) const { return (x * inverse) >> 18; }
};

struct ShortLayout {
  static constexpr int kThreads = 128, kLongest = 64;
  int problems;             // at a time
  int row_threads, threads;
  int stride, size;         // of a tile's rows and problems; a row has room for one more entry: the gradient's sum over it
  int tables;               // one for all problems, or one for each
  int64_t shared_bytes;
  Divisor by_rows, by_columns;

  static bool fits(const PairwiseCall& call) { return call.dtype != DType::f64 && call.M <= kLongest && call.N <= kLongest; }
  static ShortLayout of(const PairwiseCall& call, bool backward) {
    const int M = int(call.M), N = int(call.N);
    ShortLayout x{};
    for (int count = 1, rows, cols; rows = (count * M + 31) / 32 * 32, cols = (count * N + 31) / 32 * 32, rows + cols <= kThreads; ++count)
      if (x.problems * (rows + cols) <= count * x.threads || count == 1) {  // as few idle threads as can be
        x.problems = count;
        x.row_threads = rows;
        x.threads = rows + cols;
      }
    x.stride = (N + 1) | 1;  // odd: the lanes of a warp that walk along rows hit different banks
    x.size = M * x.stride;
    x.tables = call.region_lengths || call.phrase_lengths ? x.problems : 1;
    x.by_rows = Divisor::of(M);
    x.by_columns = Divisor::of(N);
    const int64_t weights = int64_t(x.tables) * ((M + N) * (backward ? 2 : 1) + 2) * sizeof(Weights);
    x.shared_bytes = (M + N + 1) * sizeof(double) + weights + 3 * x.problems * sizeof(int) +
                     x.problems * int64_t(backward ? 3 * x.size + N : 2 * x.size) * sizeof(float);
    return x;
  }
};

template <class In>
struct alignas(16) Sixteen {
  static constexpr int count = 16 / sizeof(In);
  In x[count];
};

// Calls work(k, x[k]) for every k < count by the block's threads; sixteen bytes at a time where `x` allows it.
template <class In, class Work>
__device__ inline void for_each_loaded(const In* x, int count, const Work& work) {
  constexpr int V = Sixteen<In>::count, kAhead = 4;  // loads under way before the first is used
  const int threads = int(blockDim.x);
  if (reinterpret_cast<uintptr_t>(x) % 16 == 0 && count % V == 0) {
#pragma unroll 1
    for (int first = int(threadIdx.x) * V; first < count; first += kAhead * threads * V) {
      Sixteen<In> loaded[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (first + a * threads * V < count) loaded[a] = *reinterpret_cast<const Sixteen<In>*>(x + first + a * threads * V);
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (first + a * threads * V < count)
#pragma unroll
          for (int v = 0; v < V; ++v) work(first + a * threads * V + v, Storage<In>::widen(loaded[a].x[v]));
    }
  } else {
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
}

// x[k] = value(k) for every k < count, likewise.
template <class In, class Value>
__device__ inline void store_each(In* x, int count, const Value& value) {
  constexpr int V = Sixteen<In>::count;
  if (reinterpret_cast<uintptr_t>(x) % 16 == 0 && count % V == 0) {
#pragma unroll 1
    for (int k = int(threadIdx.x) * V; k < count; k += int(blockDim.x) * V) {
      Sixteen<In> stored;
#pragma unroll
      for (int v = 0; v < V; ++v) stored.x[v] = Storage<In>::narrow(value(k + v));
      *reinterpret_cast<Sixteen<In>*>(x + k) = stored;
    }
  } else {
#pragma unroll 1
    for (int k = int(threadIdx.x); k < count; k += int(blockDim.x)) x[k] = Storage<In>::narrow(value(k));
  }
}

// What a thread does with its line, its entries `step` apart in a tile.
template <int S, bool stable, class Key>
__device__ inline void take_line(Key* key, const float* scores, int n, int step) {
#pragma unroll
  for (int k = 0; k < S; ++k) key[k] = k < n ? Key::template of<stable>(scores[k * step], k * step) : Key::padding();
  Key::template sort<S, stable>(key, n);
}

// part = F + G by places of the order; G of every entry to `mine`.
template <int S, class Key>
__device__ inline void sweep_forward(const Key* key, int n, Weights head, const Weights* below, float* mine, float* part) {
  float f = 0, g = 0, x_below = 0;
#pragma unroll
  for (int k = S - 1; k >= 0; --k)
    if (k < n) {
      const float x = key[k].value(), drop = k + 1 < n ? x - x_below : 0.0f;
      const Weights after = below[k];
      f += drop * after.f;
      g += drop * after.g;
      x_below = x;
      part[k] = head.f * x + f;
      mine[key[k].template at<false>()] = head.g * x + g;
    }
}

template <int S, class Key>
__device__ inline void put_line(const Key* key, int n, const float* part, float sum, float* mine) {
#pragma unroll
  for (int k = 0; k < S; ++k)
    if (k < n) mine[key[k].template at<false>()] = part[k] - sum;
}

// The gradient of every entry to `mine`, from that of F + G (`gradient`) and of G (gradient - across).
template <int S, class Key>
__device__ inline void sweep_backward(const Key* key, int n, const Weights* below, const Weights* own, const float* gradient,
                                      const float* across, bool counts, bool finite, float* mine) {
  float f_above = 0, g_above = 0;
#pragma unroll
  for (int k = 0; k < S; ++k)
    if (k < n) {
      const int at = key[k].template at<true>();
      const float f = gradient[at], g = f - across[at];
      const Weights here = own[k], after = below[k];
      const float x = f * after.f + g * after.g - (f_above * here.f + g_above * here.g);
      mine[at] = finite ? (counts ? x : 0.0f) : NAN;
      f_above += f;
      g_above += g;
    }
}

// How many blocks of a kernel an SM is to hold at once, which bounds a thread's registers.
template <class Key, int P>
constexpr int blocks_of_an_sm() {
  return P <= 16 ? 6 : P <= 32 ? 4 : 3;
}

template <class In, int P, bool backward>
__global__ void __launch_bounds__(ShortLayout::kThreads, (blocks_of_an_sm<typename ShortKey<In>::Type, P>()))
    pairwise_short_kernel(const PairwiseCall call, const ShortLayout layout, const In* grad, In* out, In* out_cols) {
  typedef typename ShortKey<In>::Type Key;
  LOUPE_DYNAMIC_SHARED(shared);
  const int M = int(call.M), N = int(call.N), area = M * N, thread = int(threadIdx.x), all = layout.problems * layout.size;
  double* atoms = reinterpret_cast<double*>(shared);
  Weights* heads = reinterpret_cast<Weights*>(atoms + M + N + 1);  // a and b of rows and of columns
  Weights* below = heads + 2 * layout.tables;
  Weights* own = below + layout.tables * (M + N);
  float* row_tile = reinterpret_cast<float*>(backward ? own + layout.tables * (M + N) : own);
  float* col_tile = row_tile + all;
  float* gradient = col_tile + all;
  float* totals = gradient + all;  // of the gradient, over columns
  int* rows = reinterpret_cast<int*>(backward ? totals + layout.problems * N : gradient);
  int* cols = rows + layout.problems;
  int* fine = cols + layout.problems;  // whether the lengths are right and the scores finite

  const bool is_row = thread < layout.row_threads, ragged = call.region_lengths || call.phrase_lengths;
  const int order = is_row ? thread : thread - layout.row_threads, lines = is_row ? M : N, entries = is_row ? N : M;
  const int problem = order / lines, line = order % lines;
  int step = is_row ? 1 : layout.stride;
  const int base = problem * layout.size + (is_row ? line * layout.stride : line);
  float* mine = (is_row ? row_tile : col_tile) + base;
  const float* others = (is_row ? col_tile : row_tile) + base;
  const float* scores = call.col_scores && !is_row ? col_tile + base : row_tile + base;
  const int table = (ragged ? problem : 0) * (M + N) + (is_row ? 0 : N);
  const float nan = NAN;

  const auto open = [&](int64_t first) {
    if (thread >= layout.problems || first + thread >= call.B) return;
    const int64_t m = call.region_lengths ? call.region_lengths[first + thread] : M;
    const int64_t n = call.phrase_lengths ? call.phrase_lengths[first + thread] : N;
    const bool valid = m >= 0 && m <= M && n >= 0 && n <= N, any = valid && m > 0 && n > 0;
    rows[thread] = any ? int(m) : 0;
    cols[thread] = any ? int(n) : 0;
    fine[thread] = valid;
  };
  const auto at_of = [&](int e) { return e + layout.by_columns.divide(e) * (layout.stride - N); };

  const auto outside = [&](int e) {
    const int row = layout.by_columns.divide(e), b = layout.by_rows.divide(row);
    return row - b * M >= rows[b] || e - row * N >= cols[b];
  };

#pragma unroll 1
  for (int k = thread; k <= M + N; k += int(blockDim.x)) atoms[k] = LineWeights::atom(k, call.p);
  open(int64_t(blockIdx.x) * layout.problems);
  __syncthreads();
  bool prepared = false;
  for (int64_t first = int64_t(blockIdx.x) * layout.problems; first < call.B; first += int64_t(gridDim.x) * layout.problems) {
    const int count = call.B - first < layout.problems ? int(call.B - first) : layout.problems;
    if (ragged) {
      open(first);
      __syncthreads();
    }
#pragma unroll 1
    for (int side = 0; side < (call.col_scores ? 2 : 1); ++side) {
      float* tile = side ? col_tile : row_tile;
      const In* from = static_cast<const In*>(side ? call.col_scores : call.scores) + first * area;
      for_each_loaded(from, count * area, [&](int e, float x) {
        const bool number = fabsf(x) < INFINITY;
        tile[at_of(e)] = number ? x : 0.0f;  // a line must sort
        if (!number && !(ragged && outside(e))) fine[layout.by_rows.divide(layout.by_columns.divide(e))] = 0;
      });
    }
    if (backward) for_each_loaded(grad + first * area, count * area, [&](int e, float x) { gradient[at_of(e)] = x; });
    if (!prepared && thread < 2 * layout.tables && thread / 2 < count && rows[thread / 2] > 0) {
      const int b = thread / 2, m = rows[b], n = cols[b], at = b * (M + N);
      ShortTable filled{0, 0, below + at, own + at};
      if (thread % 2 == 0) {
        prepare_short<backward>(filled, m, n, call.p, call.has_rows() ? call.share() : 0, atoms);
      } else {
        filled.below += N;
        filled.own += N;
        prepare_short<backward>(filled, int(call.columns_of_a_game(n)), m, call.p, call.share(), atoms);
      }
      heads[thread] = {filled.a, filled.b};
    }
    prepared = !ragged;
    __syncthreads();

    asm volatile("" : "+r"(step));  // the places of a line's entries are no constants of the loop: they would fill the registers
    const bool inside = problem < count && line < (is_row ? rows[problem] : cols[problem]);
    const int n = inside ? (is_row ? cols[problem] : rows[problem]) : 0;
    const bool finite = inside && fine[problem];
    Key key[P];
    with_size<P>(entries, [&](auto size) { take_line<decltype(size)::value, backward>(key, scores, n, step); });
    if (backward && inside) {
      float sum = 0;
#pragma unroll 8
      for (int k = 0; k < n; ++k) sum += gradient[base + k * step];
      (is_row ? gradient[base + N] : totals[problem * N + line]) = sum;
    }
    __syncthreads();

    if constexpr (backward) {
      const float* across = is_row ? totals + problem * N : gradient + problem * layout.size + N;
      const bool counts = !is_row || call.has_rows();
      with_size<P>(entries, [&](auto size) {
        sweep_backward<decltype(size)::value>(key, n, below + table, own + table, gradient + base, across, counts, finite, mine);
      });
    } else {
      const Weights head = heads[ragged ? 2 * (inside ? problem : 0) + !is_row : int(!is_row)];
      float part[P];
      with_size<P>(entries, [&](auto size) {
        sweep_forward<decltype(size)::value>(key, n, head, below + table, mine, part);
      });
      __syncthreads();
      float sum = inside && !finite ? nan : 0.0f;
#pragma unroll 8
      for (int k = 0; k < n; ++k) sum += others[k * step];
      __syncthreads();
      with_size<P>(entries, [&](auto size) { put_line<decltype(size)::value>(key, n, part, sum, mine); });
    }
    __syncthreads();

    const auto store = [&](In* to, bool of_rows, bool of_cols) {
      store_each(to + first * area, count * area, [&](int e) {
        if (ragged && outside(e)) {
          const int b = layout.by_rows.divide(layout.by_columns.divide(e));
          return fine[b] || rows[b] ? 0.0f : nan;  // nan where the lengths are wrong
        }
        const int at = at_of(e);
        return (of_rows ? row_tile[at] : 0.0f) + (of_cols ? col_tile[at] : 0.0f);
      });
    };
    store(out, true, !(backward && out_cols));
    if (backward && out_cols) store(out_cols, false, true);
    if (!ragged) open(first + int64_t(gridDim.x) * layout.problems);
    __syncthreads();
  }
}

template <class In, int P, bool backward>
void launch_short_of(const PairwiseCall& call, const void* grad, void* out, void* out_cols, void* stream) {
  const ShortLayout layout = ShortLayout::of(call, backward);
  const int64_t tiles = (call.B + layout.problems - 1) / layout.problems;
  const int64_t most = int64_t(multiprocessors()) * blocks_of_an_sm<typename ShortKey<In>::Type, P>();
  LOUPE_LAUNCH((pairwise_short_kernel<In, P, backward>), unsigned(tiles < most ? tiles : most), unsigned(layout.threads),
               layout.shared_bytes, stream, call, layout, static_cast<const In*>(grad), static_cast<In*>(out),
               static_cast<In*>(out_cols));
}

template <class In, bool backward>
void launch_short(const PairwiseCall& call, const void* grad, void* out, void* out_cols, void* stream) {
  const int64_t longest = call.M > call.N ? call.M : call.N;
  if (longest <= 16) launch_short_of<In, 16, backward>(call, grad, out, out_cols, stream);
  else if (longest <= 32) launch_short_of<In, 32, backward>(call, grad, out, out_cols, stream);
  else launch_short_of<In, 64, backward>(call, grad, out, out_cols, stream);
}

}  // namespace
}  // namespace loupe
