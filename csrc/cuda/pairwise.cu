// Exact pair interactions on a GPU: small problems by pairwise_short.cuh, others by a block each. It reads the scores once
// into a tile, a warp sorts a line (or several short ones), scans its weighted gaps and leaves two numbers per entry in the
// tile, rows first, then columns; then the block writes the result once. The tile is in shared memory or, for larger
// problems, in scratch of a size that does not depend on the batch. No atomics: the same bits every time.

#include "pairwise.h"

#include "lines.cuh"
#include "pairwise_short.cuh"

namespace loupe {
namespace {

// What a sweep multiplies the place k of a sorted line by: the entry at place k >= 1 has rank k among the others of any
// entry above it and carries w[k]; w_below[k] sums the weights of the places after k. Everything times the direction's share
// of the game.
template <class T>
struct LineTable {
  T a, b;
  T *w, *v, *w_below, *v_below;
};

// Fills the table, and its four arrays of `size`, for `lines` lines with `n` entries; by one warp.
template <class T>
__device__ void prepare(LineTable<T>& table, T* arrays, int size, int lines, int n, double p, double share, int lane) {
  const LineWeights line = weights_by_warp(lines, n, p, lane);
  T *ws = arrays, *vs = arrays + size, *w_below = arrays + 2 * size, *v_below = arrays + 3 * size;
  if (lane == 0) table = {T(line.a * share), T(line.b * share), ws, vs, w_below, v_below};
  double w_carry = 0, v_carry = 0;  // sums of the places after this round's
  for (int base = (n - 1) / 32 * 32; base >= 0; base -= 32) {
    const int k = base + lane;
    const bool real = k >= 1 && k < n;
    const double w = real ? line.w(k) * share : 0, v = real ? line.v(k) * share : 0;
    double w_here = w, v_here = v;  // becomes the sum from this lane on
    for (int d = 1; d < 32; d *= 2) {
      const double more_w = __shfl_down_sync(kWarp, w_here, d, 32), more_v = __shfl_down_sync(kWarp, v_here, d, 32);
      if (lane + d < 32) {
        w_here += more_w;
        v_here += more_v;
      }
    }
    const double w_after = __shfl_down_sync(kWarp, w_here, 1, 32), v_after = __shfl_down_sync(kWarp, v_here, 1, 32);
    if (k < n) {
      const int place = padded(k);
      ws[place] = T(w);
      vs[place] = T(v);
      w_below[place] = T(w_carry + (lane < 31 ? w_after : 0));
      v_below[place] = T(v_carry + (lane < 31 ? v_after : 0));
    }
    w_carry += __shfl_sync(kWarp, w_here, 0, 32);
    v_carry += __shfl_sync(kWarp, v_here, 0, 32);
  }
}

// f += F + G and g = G of every entry of a sorted line.
template <class T>
struct ForwardSweep {
  T *f, *g;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T, LineTable<T>>& lines, int line, int lane,
                             bool real) const {
    const LineTable<T>& table = *lines.table;
    const int first = lane * sorted.items, place = padded(first);
    const T next = __shfl_down_sync(kWarp, sorted.get(0).x, 1, Line::width);
    T f_below = 0, g_below = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {  // sums of this lane's places; then, on top of the lanes' after it, every place's
      if (pass == 1) {
        f_below = sum_of_lanes_after<Line::width>(f_below, lane);
        g_below = sum_of_lanes_after<Line::width>(g_below, lane);
      }
      T x_below = next;
#pragma unroll
      for (int t = sorted.items - 1; t >= 0; --t) {
        const int k = first + t;
        const Key<T> key = sorted.get(t);
        if (k < lines.n - 1) {
          f_below += (key.x - x_below) * table.w_below[place + padded(t)];
          g_below += (key.x - x_below) * table.v_below[place + padded(t)];
        }
        x_below = key.x;
        if (pass == 1 && real && k < lines.n) {
          const int e = lines.at(line, key.at);
          const T here = table.b * key.x + g_below;
          f[e] += table.a * key.x + f_below + here;
          g[e] = here;
        }
      }
    }
  }
};

// out (+)= the gradient of every entry of a sorted line, from that of F + G (`grad`) and of G (grad - totals of its line).
template <class T>
struct BackwardSweep {
  const T *grad, *totals;
  T* out;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T, LineTable<T>>& lines, int line, int lane,
                             bool real) const {
    const LineTable<T>& table = *lines.table;
    const int first = lane * sorted.items, place = padded(first);
    T f_above = 0, g_above = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) {
        f_above = sum_of_lanes_before<Line::width>(f_above, lane);
        g_above = sum_of_lanes_before<Line::width>(g_above, lane);
      }
#pragma unroll
      for (int t = 0; t < sorted.items; ++t) {
        const int k = first + t, at = place + padded(t);
        if (!real || k >= lines.n) continue;
        const int entry = sorted.get(t).at, e = lines.at(line, entry);
        const T f = grad[e], g = f - totals[entry];
        if (pass == 1)
          out[e] += f * (table.a + table.w_below[at]) + g * (table.b + table.v_below[at]) -
                    (f_above * table.w[at] + g_above * table.v[at]);
        f_above += f;
        g_above += g;
      }
    }
  }
};

template <class T, int kMost, bool backward>
__global__ void LOUPE_LINE_BOUNDS(T, kMost)
    pairwise_kernel(PairwiseCall call, Layout layout, const void* grad, void* out, void* out_cols, unsigned char* scratch) {
  LOUPE_DYNAMIC_SHARED(shared);
  unsigned char* memory = shared;
  Key<T>* keys = take<Key<T>>(memory, int64_t(layout.warps) * layout.keys);
  __shared__ LineTable<T> row_table, col_table;
  __shared__ int finite;
  T* arrays = take<T>(memory, 8 * int64_t(layout.table));
  T* totals = take<T>(memory, layout.table);
  T* along = take<T>(memory, layout.table);
  T* partial = take<T>(memory, blockDim.x);
  unsigned char* tile = layout.in_shared ? memory : scratch + blockIdx.x * layout.matrix_bytes;
  T* s = reinterpret_cast<T*>(tile);
  T* f = s + layout.entries;
  T* g = f + layout.entries;
  T* c = call.col_scores ? g + layout.entries : s;
  const int threads = blockDim.x, thread = threadIdx.x, lane = thread % 32;
  const int64_t area = call.M * call.N;
  const T nan = T(NAN);
  int M_of_table = -1, N_of_table = -1;

  for (int64_t b = blockIdx.x; b < call.B; b += gridDim.x) {
    const int64_t rows = call.region_lengths ? call.region_lengths[b] : call.M;
    const int64_t cols = call.phrase_lengths ? call.phrase_lengths[b] : call.N;
    const bool valid = rows >= 0 && rows <= call.M && cols >= 0 && cols <= call.N;
    const int M = valid ? int(rows) : 0, N = valid ? int(cols) : 0;
    if (thread == 0) finite = 1;
    __syncthreads();
    if (M > 0 && N > 0) {
      if (M != M_of_table || N != N_of_table) {
        if (thread / 32 == 0) prepare(row_table, arrays, layout.table, M, N, call.p, call.share(), lane);
        if (thread / 32 == (threads > 32))
          prepare(col_table, arrays + 4 * layout.table, layout.table, int(call.columns_of_a_game(N)), M, call.p, call.share(), lane);
        M_of_table = M;
        N_of_table = N;
      }
      bool ok = true;
      for (int e = thread; e < M * N; e += threads) {
        const int i = e / N, j = e % N, to = i * layout.stride + j;
        const int64_t from = b * area + i * call.N + j;
        ok = put_finite(load_wide<T>(call.scores, call.dtype, from), s[to]) && ok;
        if (call.col_scores) ok = put_finite(load_wide<T>(call.col_scores, call.dtype, from), c[to]) && ok;
        f[to] = 0;
        g[to] = backward ? load_wide<T>(grad, call.dtype, from) : T(0);
      }
      if (!ok) finite = 0;
      __syncthreads();
      const Lines<T, LineTable<T>> by_row{M, N, layout.stride, 1, s, &row_table};
      const Lines<T, LineTable<T>> by_col{N, M, 1, layout.stride, c, &col_table};
      if (backward) {
        sum_columns(g, M, N, layout.stride, totals, partial);
        sum_rows(g, M, N, layout.stride, along);
        __syncthreads();
      }
#pragma unroll 1
      for (int side = 0; side < 2; ++side) {  // the rows, then the columns
        const Lines<T, LineTable<T>> lines = side == 0 ? by_row : by_col;
        if (side == 1 || call.has_rows()) {
          if constexpr (backward) sweep_lines<kMost>(lines, BackwardSweep<T>{g, side == 0 ? totals : along, f}, keys);
          else sweep_lines<kMost>(lines, ForwardSweep<T>{f, g}, keys);
        }
        __syncthreads();
        if (!backward) {  // of G, by the other side's lines
          if (side == 0) sum_columns(g, M, N, layout.stride, totals, partial);
          else sum_rows(g, M, N, layout.stride, along);
        } else if (side == 0 && out_cols) {
          for (int e = thread; e < M * N; e += threads) {
            const int i = e / N, j = e % N, at = i * layout.stride + j;
            store_narrow(out, call.dtype, b * area + i * call.N + j, finite ? f[at] : nan);
            f[at] = 0;
          }
        }
        __syncthreads();
      }
    }
    void* last = backward && out_cols ? out_cols : out;
    for (int e = thread; e < area; e += threads) {
      const int i = int(e / call.N), j = int(e % call.N), at = i * layout.stride + j;
      const bool inside = i < M && j < N;
      T x = inside ? f[at] : T(0);
      if (inside && !backward) x -= totals[j] + along[i];
      if (!valid || (inside && !finite)) x = nan;
      store_narrow(last, call.dtype, b * area + e, x);
      if (last != out && !inside) store_narrow(out, call.dtype, b * area + e, x);
    }
    __syncthreads();
  }
}

template <class T>
Layout layout_of(const PairwiseCall& call) {
  return Layout::of<T>(call, 10, call.col_scores ? 4 : 3, 0, 1);
}

template <class T, int kMost, bool backward>
void launch_in_blocks(const PairwiseCall& call, const Layout& layout, const void* grad, void* out, void* out_cols,
                      void* scratch, void* stream) {
  LOUPE_LAUNCH((pairwise_kernel<T, kMost, backward>), unsigned(layout.blocks(call.B)), unsigned(32 * layout.warps),
               layout.shared_bytes, stream, call, layout, grad, out, out_cols, static_cast<unsigned char*>(scratch));
}

template <bool backward>
void launch(const PairwiseCall& call, const void* grad, void* out, void* out_cols, void* scratch, void* stream) {
  if (call.B == 0 || call.M == 0 || call.N == 0) return;
  if (ShortLayout::fits(call)) {
    for_dtype(call.dtype, [&](auto type) {
      typedef decltype(type) In;
      if constexpr (sizeof(In) < sizeof(double))
        launch_short<In, backward>(call, grad, out, out_cols, stream);
    });
  } else if (call.dtype != DType::f64) {
    launch_in_blocks<float, kLong, backward>(call, layout_of<float>(call), grad, out, out_cols, scratch, stream);
  } else {
    const Layout layout = layout_of<double>(call);
    if (layout.most == kLong) launch_in_blocks<double, kLong, backward>(call, layout, grad, out, out_cols, scratch, stream);
    else launch_in_blocks<double, kShort, backward>(call, layout, grad, out, out_cols, scratch, stream);
  }
}

}  // namespace

int64_t pairwise_scratch_bytes_cuda(const PairwiseCall& call) {
  if (call.B == 0 || call.M == 0 || call.N == 0 || ShortLayout::fits(call)) return 0;
  const Layout layout = call.dtype == DType::f64 ? layout_of<double>(call) : layout_of<float>(call);
  return layout.in_shared ? 0 : layout.blocks(call.B) * layout.matrix_bytes;
}

void pairwise_forward_cuda(const PairwiseCall& call, void* out, void* scratch, void* stream) {
  launch<false>(call, nullptr, out, nullptr, scratch, stream);
}

void pairwise_backward_cuda(const PairwiseCall& call, const void* grad, void* grad_scores, void* grad_col_scores,
                            void* scratch, void* stream) {
  launch<true>(call, grad, grad_scores, grad_col_scores, scratch, stream);
}

}  // namespace loupe
