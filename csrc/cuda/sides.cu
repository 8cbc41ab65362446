// Exact values and same-side pairs on a GPU: small problems by sides_short.cuh, others by a block each, tiled as in pairwise.cu. Forward, warps sort lines
// and leave H of every entry in the tile and two sums a line in shared memory; then a thread takes a player, or a pair of
// them, at a time. Backward, a thread collects what reaches H of an entry, then the sorted lines are swept. No atomics: the
// same bits every time.

#include "sides.h"

#include "lines.cuh"
#include "sides_short.cuh"

namespace loupe {
namespace {

// What a sorted line's places carry: the numbers of SideWeights; `step` is how much less the slope is than at the place before.
template <class T>
struct SideTable {
  T *own, *other, *slope, *step;
};

// Fills the table, and its four arrays of `size`, for `lines` lines with `n` entries; by one warp.
template <class T>
__device__ void prepare(SideTable<T>& table, T* arrays, int size, int lines, int n, const PairwiseCall& call, int order,
                        int lane) {
  T *own = arrays, *other = arrays + size, *slope = arrays + 2 * size, *step = arrays + 3 * size;
  if (lane == 0) table = {own, other, slope, step};
  SideWeights::by_warp(lines, n, call, order, lane, [&](int k, const SideWeights& weights) {
    const int place = padded(k);
    own[place] = T(weights.own);
    other[place] = T(weights.other);
    slope[place] = T(weights.slope(k));
    step[place] = k > 0 ? T(weights.slope(k - 1) - weights.slope(k)) : T(0);
  });
}

template <class T>
struct ForwardSweep {
  T *hinge, *own, *other;  // of the entries; of the lines

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T, SideTable<T>>& lines, int line, int lane, bool real) const {
    const SideTable<T>& table = *lines.table;
    const int first = lane * sorted.items, place = padded(first);
    const T next = __shfl_down_sync(kWarp, sorted.get(0).x, 1, Line::width);
    T height = 0, own_sum = 0, other_sum = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {  // the rise over this lane's places; then, on top of the lanes' after it, H
      if (pass == 1) height = sum_of_lanes_after<Line::width>(height, lane);
      T x_below = next;
#pragma unroll
      for (int t = sorted.items - 1; t >= 0; --t) {
        const int k = first + t, at = place + padded(t);
        const Key<T> key = sorted.get(t);
        if (k < lines.n) {
          height += (k == lines.n - 1 ? key.x : key.x - x_below) * table.slope[at];
          if (pass == 0) {
            own_sum += key.x * table.own[at];
            other_sum += key.x * table.other[at];
          } else if (real) {
            hinge[lines.at(line, key.at)] = height;
          }
        }
        x_below = key.x;
      }
    }
    for (int d = 1; d < Line::width; d *= 2) {
      own_sum += __shfl_xor_sync(kWarp, own_sum, d, Line::width);
      other_sum += __shfl_xor_sync(kWarp, other_sum, d, Line::width);
    }
    if (real && lane == 0) {
      own[line] = own_sum;
      other[line] = other_sum;
    }
  }
};

// out += the gradient of every entry of a sorted line, from what reaches H of the entry, the line's sum and, by all lines,
// the shared sum.
template <class T>
struct BackwardSweep {
  const T *part, *own;
  T shared;
  T* out;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T, SideTable<T>>& lines, int line, int lane, bool real) const {
    const SideTable<T>& table = *lines.table;
    const int first = lane * sorted.items, place = padded(first);
    T above = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) above = sum_of_lanes_before<Line::width>(above, lane);
#pragma unroll
      for (int t = 0; t < sorted.items; ++t) {
        const int k = first + t, at = place + padded(t);
        if (!real || k >= lines.n) continue;
        const int e = lines.at(line, sorted.get(t).at);
        const T f = part[e];
        if (pass == 1)
          out[e] += f * table.slope[at] - above * table.step[at] + own[line] * table.own[at] + shared * table.other[at];
        above += f;
      }
    }
  }
};

// Runs of terms are summed on their own, so that rounding hardly grows with the number of terms.
template <class T, class Term>
__device__ T sum_in_runs(int n, const Term& term) {
  T sum = 0;
  for (int begin = 0; begin < n; begin += 32) {
    T run = 0;
    for (int k = begin; k < n && k < begin + 32; ++k) run += term(k);
    sum += run;
  }
  return sum;
}

template <class T>
__device__ T sum_of(const T* x, int n) {
  return sum_in_runs<T>(n, [&](int k) { return x[k]; });
}

// A side of n players (room for ld): H where they are entries of the other side's `lines`, their sums where they are lines.
template <class T>
struct Side {
  int n, ld, lines, line_step, entry_step;
  const T *hinge, *own, *other;

  // The result of its player e, or of its pair (e / ld, e % ld).
  __device__ T result(int order, int64_t e, T shared) const {
    const int k = int(e / ld), l = int(e % ld);
    if (k == l && order == 2) return T(0);
    const T sum = sum_in_runs<T>(lines, [&](int line) {
      const T x = hinge[line * line_step + (order == 2 ? k : l) * entry_step], y = hinge[line * line_step + l * entry_step];
      return x < y ? x : y;
    });
    return order == 1 ? own[l] - shared + sum : shared - (own[k] + own[l]) - sum;
  }
};

template <class T>
__device__ void write_side(const Side<T>& side, int order, bool valid, bool finite, void* out, DType dtype, int64_t before) {
  const int64_t all = order == 1 ? side.ld : int64_t(side.ld) * side.ld;
  const T shared = sum_of(side.other, side.n);
  for (int64_t e = threadIdx.x; e < all; e += blockDim.x) {
    const bool inside = e % side.ld < side.n && e / side.ld < side.n;
    T x = inside ? side.result(order, e, shared) : T(0);
    if (!valid || (inside && !finite)) x = T(NAN);
    store_narrow(out, dtype, before + e, x);
  }
}

// What reaches the lines of a side (`own`), from the gradients of its values or pairs; for pairs also the square of both
// gradients of each.
template <class T>
__device__ void load_grad(const void* grad, DType dtype, int64_t before, int order, int n, int ld, T* square, T* own) {
  const int threads = blockDim.x, thread = threadIdx.x;
  for (int k = thread; order == 1 && k < n; k += threads) own[k] = load_wide<T>(grad, dtype, before + k);
  for (int e = thread; order == 2 && e < n * n; e += threads) {
    const int64_t k = e / n, l = e % n;
    const T both = load_wide<T>(grad, dtype, before + k * ld + l) + load_wide<T>(grad, dtype, before + l * ld + k);
    square[k * (n | 1) + l] = k == l ? T(0) : both;
  }
  __syncthreads();
  for (int k = thread; order == 2 && k < n; k += threads) own[k] = -sum_of(square + k * (n | 1), n);
  __syncthreads();
}

// part = what reaches H of every entry: its player's gradient (order 1), or minus those of the line's pairs in which it is
// the lower: the smaller, or of equal ones the one of higher index.
template <class T, class Table>
__device__ void collect(const Lines<T, Table>& lines, int order, const T* square, const T* own, T* part) {
  for (int e = threadIdx.x; e < lines.count * lines.n; e += blockDim.x) {
    const bool by_row = lines.entry_step == 1;  // neighbouring threads take neighbouring columns
    const int line = by_row ? e / lines.n : e % lines.count, k = by_row ? e % lines.n : e / lines.count;
    const T x = lines.scores[lines.at(line, k)];
    const T pairs = sum_in_runs<T>(order == 1 ? 0 : lines.n, [&](int l) {
      const T y = lines.scores[lines.at(line, l)];
      const bool lower = bool((x < y) | ((x == y) & (l < k)));  // no branch
      return lower ? square[l * (lines.n | 1) + k] : T(0);
    });
    part[lines.at(line, k)] = order == 1 ? own[k] : -pairs;
  }
  __syncthreads();
}

template <class T, int kMost, bool backward>
__global__ void LOUPE_LINE_BOUNDS(T, kMost)
    sides_kernel(PairwiseCall call, int order, Layout layout, Results results, void* out, void* out_cols, unsigned char* scratch) {
  LOUPE_DYNAMIC_SHARED(shared);
  unsigned char* memory = shared;
  Key<T>* keys = take<Key<T>>(memory, int64_t(layout.warps) * layout.keys);
  __shared__ SideTable<T> row_table, col_table;
  __shared__ int finite;
  T* arrays = take<T>(memory, 12 * int64_t(layout.table));
  T *row_own = arrays + 8 * layout.table, *row_other = arrays + 9 * layout.table;
  T *col_own = arrays + 10 * layout.table, *col_other = arrays + 11 * layout.table;
  unsigned char* tile = layout.in_shared ? memory : scratch + blockIdx.x * layout.matrix_bytes;
  T* s = reinterpret_cast<T*>(tile);
  T* f = s + layout.entries;  // forward: H of the rows' entries; backward: what reaches H
  T* g = f + layout.entries;  // forward: H of the columns' entries; backward: the result
  T* c = call.col_scores ? g + layout.entries : s;
  T* square = (call.col_scores ? c : g) + layout.entries;
  const int threads = blockDim.x, thread = threadIdx.x, lane = thread % 32;
  const int64_t area = call.M * call.N;
  const int64_t region_area = order == 1 ? call.M : call.M * call.M, phrase_area = order == 1 ? call.N : call.N * call.N;
  int M_of_table = -1, N_of_table = -1;

  for (int64_t b = blockIdx.x; b < call.B; b += gridDim.x) {
    const int64_t rows = call.region_lengths ? call.region_lengths[b] : call.M;
    const int64_t cols = call.phrase_lengths ? call.phrase_lengths[b] : call.N;
    const bool valid = rows >= 0 && rows <= call.M && cols >= 0 && cols <= call.N, any = valid && rows > 0 && cols > 0;
    const int M = any ? int(rows) : 0, N = any ? int(cols) : 0;
    if (thread == 0) finite = 1;
    __syncthreads();
    if (any && (M != M_of_table || N != N_of_table)) {
      if (thread / 32 == 0) prepare(row_table, arrays, layout.table, M, N, call, order, lane);
      if (thread / 32 == (threads > 32))
        prepare(col_table, arrays + 4 * layout.table, layout.table, int(call.columns_of_a_game(N)), M, call, order, lane);
      M_of_table = M;
      N_of_table = N;
    }
    bool ok = true;
    for (int e = thread; e < M * N; e += threads) {
      const int i = e / N, j = e % N, to = i * layout.stride + j;
      const int64_t from = b * area + i * call.N + j;
      ok = put_finite(load_wide<T>(call.scores, call.dtype, from), s[to]) && ok;
      if (call.col_scores) ok = put_finite(load_wide<T>(call.col_scores, call.dtype, from), c[to]) && ok;
      if (backward) g[to] = 0;
    }
    for (int i = thread; i < M; i += threads) row_own[i] = row_other[i] = 0;  // MaxSim has no rows
    if (!ok) finite = 0;
    __syncthreads();
    const Lines<T, SideTable<T>> by_row{M, N, layout.stride, 1, s, &row_table};
    const Lines<T, SideTable<T>> by_col{N, M, 1, layout.stride, c, &col_table};
    if constexpr (!backward) {
#pragma unroll 1
      for (int side = call.has_rows() ? 0 : 1; side < 2; ++side) {
        const ForwardSweep<T> sweep = side == 0 ? ForwardSweep<T>{f, row_own, row_other} : ForwardSweep<T>{g, col_own, col_other};
        sweep_lines<kMost>(side == 0 ? by_row : by_col, sweep, keys);
      }
      __syncthreads();
      const Side<T> regions{M, int(call.M), N, 1, layout.stride, g, row_own, row_other};
      const Side<T> phrases{N, int(call.N), call.has_rows() ? M : 0, layout.stride, 1, f, col_own, col_other};
      write_side(regions, order, valid, finite, results.regions, call.dtype, b * region_area);
      write_side(phrases, order, valid, finite, results.phrases, call.dtype, b * phrase_area);
    } else {
      const T every = order == 1 ? 1 : T(0.5);
      load_grad(results.phrases, call.dtype, b * phrase_area, order, N, int(call.N), square, col_own);
      if (call.has_rows()) collect(by_row, order, square, col_own, f);
      load_grad(results.regions, call.dtype, b * region_area, order, M, int(call.M), square, row_own);
#pragma unroll 1
      for (int side = 0; side < 2; ++side) {
        const Lines<T, SideTable<T>> lines = side == 0 ? by_row : by_col;
        const T* own = side == 0 ? row_own : col_own;
        if (side == 1) collect(by_col, order, square, row_own, f);
        if (side == 1 || call.has_rows())
          sweep_lines<kMost>(lines, BackwardSweep<T>{f, own, -every * sum_of(own, lines.count), g}, keys);
        __syncthreads();
        if (side == 0 && !out_cols) continue;  // both gradients are of the same scores
        void* to = side == 1 && out_cols ? out_cols : out;
        for (int64_t e = thread; e < area; e += threads) {
          const int i = int(e / call.N), j = int(e % call.N), at = i * layout.stride + j;
          const bool inside = i < M && j < N;
          T x = inside ? g[at] : T(0);
          if (!valid || (inside && !finite)) x = T(NAN);
          store_narrow(to, call.dtype, b * area + e, x);
          if (inside) g[at] = 0;
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

template <class T>
Layout layout_of(const PairwiseCall& call, int order, bool backward) {
  const int64_t longest = call.M > call.N ? call.M : call.N;
  return Layout::of<T>(call, 12, call.col_scores ? 4 : 3, order == 2 && backward ? longest * (longest | 1) : 0);
}

template <class T, int kMost, bool backward>
void launch_in_blocks(const PairwiseCall& call, int order, const Layout& layout, const Results& results, void* out,
                      void* out_cols, void* scratch, void* stream) {
  LOUPE_LAUNCH((sides_kernel<T, kMost, backward>), unsigned(layout.blocks(call.B)), unsigned(32 * layout.warps),
               layout.shared_bytes, stream, call, order, layout, results, out, out_cols, static_cast<unsigned char*>(scratch));
}

template <bool backward>
void launch(const PairwiseCall& call, int order, const Results& results, void* out, void* out_cols, void* scratch,
            void* stream) {
  if (call.B == 0 || call.M == 0 || call.N == 0) return;
  if (SidesShortLayout::fits(call, order, backward)) {
    launch_short<backward>(call, order, results, out, out_cols, stream);
  } else if (call.dtype != DType::f64) {
    const Layout layout = layout_of<float>(call, order, backward);
    launch_in_blocks<float, kLong, backward>(call, order, layout, results, out, out_cols, scratch, stream);
  } else {
    const Layout layout = layout_of<double>(call, order, backward);
    if (layout.most == kLong)
      launch_in_blocks<double, kLong, backward>(call, order, layout, results, out, out_cols, scratch, stream);
    else launch_in_blocks<double, kShort, backward>(call, order, layout, results, out, out_cols, scratch, stream);
  }
}

}  // namespace

int64_t sides_scratch_bytes_cuda(const PairwiseCall& call, int order, bool backward) {
  if (call.B == 0 || call.M == 0 || call.N == 0 || SidesShortLayout::fits(call, order, backward)) return 0;
  const Layout layout =
      call.dtype == DType::f64 ? layout_of<double>(call, order, backward) : layout_of<float>(call, order, backward);
  return layout.in_shared ? 0 : layout.blocks(call.B) * layout.matrix_bytes;
}

void sides_forward_cuda(const PairwiseCall& call, int order, void* regions, void* phrases, void* scratch, void* stream) {
  launch<false>(call, order, {regions, phrases}, nullptr, nullptr, scratch, stream);
}

void sides_backward_cuda(const PairwiseCall& call, int order, const void* grad_regions, const void* grad_phrases,
                         void* grad_scores, void* grad_col_scores, void* scratch, void* stream) {
  launch<true>(call, order, {const_cast<void*>(grad_regions), const_cast<void*>(grad_phrases)}, grad_scores, grad_col_scores,
               scratch, stream);
}

}  // namespace loupe
