// Exact pair interactions on a GPU: a block a problem. The block reads the scores once into a tile, a warp sorts a line
// (or several short ones), scans its weighted gaps and leaves two numbers an entry in the tile, rows first, then columns;
// then the block writes the result once. The tile is in shared memory (always for M, N <= 64 where it fits) or, for larger
// problems, in scratch of a size that does not depend on the batch. No atomics: the same bits every time.

#include "pairwise.h"

#include <cmath>

#include "../core/half.h"
#include "launch.h"
#include "sort.cuh"

namespace loupe {
namespace {

// What a sweep multiplies the place k of a sorted line by: the entry at place k >= 1 has rank k among the others of any
// entry above it and carries w[k]; w_below[k] sums the weights of the places after k. Everything halved: the game is half
// of each part.
template <class T>
struct LineTable {
  T a, b;
  T *w, *v, *w_below, *v_below;
};

template <class T>
__device__ T warp_sum(T x) {
  for (int d = 16; d >= 1; d /= 2) x += __shfl_xor_sync(kWarp, x, d, 32);
  return x;
}

// Fills the table, and its four arrays of `size`, for `lines` lines with `n` entries; by one warp.
template <class T>
__device__ void prepare(LineTable<T>& table, T* arrays, int size, int lines, int n, double p, int lane) {
  LineLaw law = LineLaw::start(lines, n, p);
  const double last = law.term(lines - 1);
  double sum = 0, excess = 0;
  for (int t = lane; t < lines; t += 32) {
    sum += law.term(t);
    excess += law.term(t) - last;
  }
  law.finish(warp_sum(sum), warp_sum(excess));
  T *ws = arrays, *vs = arrays + size, *w_below = arrays + 2 * size, *v_below = arrays + 3 * size;
  if (lane == 0) table = {T(law.a / 2), T(law.b / 2), ws, vs, w_below, v_below};
  double w_carry = 0, v_carry = 0;  // sums of the places after this round's
  for (int base = (n - 1) / 32 * 32; base >= 0; base -= 32) {
    const int k = base + lane;
    const bool real = k >= 1 && k < n;
    const double w = real ? law.w(k) / 2 : 0, v = real ? law.v(k) / 2 : 0;
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
      ws[k] = T(w);
      vs[k] = T(v);
      w_below[k] = T(w_carry + (lane < 31 ? w_after : 0));
      v_below[k] = T(v_carry + (lane < 31 ? v_after : 0));
    }
    w_carry += __shfl_sync(kWarp, w_here, 0, 32);
    v_carry += __shfl_sync(kWarp, v_here, 0, 32);
  }
}

// A problem's lines in one direction: entry e of line l is at [l * line_step + e * entry_step] of the tile's matrices.
template <class T>
struct Lines {
  int count, n, line_step, entry_step;
  const T* scores;
  const LineTable<T>* table;
  __device__ int at(int line, int entry) const { return line * line_step + entry * entry_step; }
};

// f += F + G and g = G of every entry of a sorted line.
template <class T>
struct ForwardSweep {
  T *f, *g;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T>& lines, int line, int lane, bool real) const {
    const LineTable<T>& table = *lines.table;
    const int first = lane * sorted.items;
    const T next = __shfl_down_sync(kWarp, sorted.get(0).x, 1, Line::width);
    T f_below = 0, g_below = 0;
    for (int pass = 0; pass < 2; ++pass) {  // sums of this lane's places; then, on top of the lanes' after it, every place's
      if (pass == 1) scan_after<Line::width>(f_below, g_below, lane);
      T x_below = next;
      for (int t = sorted.items - 1; t >= 0; --t) {
        const int k = first + t;
        const Key<T> key = sorted.get(t);
        if (k < lines.n - 1) {
          f_below += (key.x - x_below) * table.w_below[k];
          g_below += (key.x - x_below) * table.v_below[k];
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

  // Turns a lane's sums into the sums of the lanes after it.
  template <int width>
  __device__ static void scan_after(T& f, T& g, int lane) {
    for (int d = 1; d < width; d *= 2) {
      const T more_f = __shfl_down_sync(kWarp, f, d, width), more_g = __shfl_down_sync(kWarp, g, d, width);
      if (lane + d < width) {
        f += more_f;
        g += more_g;
      }
    }
    f = __shfl_down_sync(kWarp, f, 1, width);
    g = __shfl_down_sync(kWarp, g, 1, width);
    if (lane == width - 1) f = g = 0;
  }
};

// out (+)= the gradient of every entry of a sorted line, from that of F + G (`grad`) and of G (grad - totals of its line).
template <class T>
struct BackwardSweep {
  const T *grad, *totals;
  T* out;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T>& lines, int line, int lane, bool real) const {
    const LineTable<T>& table = *lines.table;
    const int first = lane * sorted.items;
    T f_above = 0, g_above = 0;
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) scan_before<Line::width>(f_above, g_above, lane);
      for (int t = 0; t < sorted.items; ++t) {
        const int k = first + t;
        if (!real || k >= lines.n) continue;
        const int entry = sorted.get(t).at, e = lines.at(line, entry);
        const T f = grad[e], g = f - totals[entry];
        if (pass == 1)
          out[e] += f * (table.a + table.w_below[k]) + g * (table.b + table.v_below[k]) -
                    (f_above * table.w[k] + g_above * table.v[k]);
        f_above += f;
        g_above += g;
      }
    }
  }

  template <int width>
  __device__ static void scan_before(T& f, T& g, int lane) {
    for (int d = 1; d < width; d *= 2) {
      const T more_f = __shfl_up_sync(kWarp, f, d, width), more_g = __shfl_up_sync(kWarp, g, d, width);
      if (lane >= d) {
        f += more_f;
        g += more_g;
      }
    }
    f = __shfl_up_sync(kWarp, f, 1, width);
    g = __shfl_up_sync(kWarp, g, 1, width);
    if (lane == 0) f = g = 0;
  }
};

template <int W, int I, class T, class Sweep>
__device__ void sweep_in_registers(const Lines<T>& lines, const Sweep& sweep) {
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % W, part = threadIdx.x % 32 / W;
  for (int first = warp * (32 / W); first < lines.count; first += warps * (32 / W)) {
    const int line = first + part;
    const bool real = line < lines.count;
    RegisterLine<W, I, T> sorted;
#pragma unroll
    for (int t = 0; t < I; ++t) {
      const int k = lane * I + t;
      sorted.key[t] = {real && k < lines.n ? lines.scores[lines.at(line, k)] : T(-INFINITY), k};
    }
    sorted.sort(lane);
    sweep(sorted, lines, line, lane, real);
  }
}

template <class T, class Sweep>
__device__ void sweep_lines(const Lines<T>& lines, const Sweep& sweep, Key<T>* keys) {
  if (lines.n <= 8) return sweep_in_registers<8, 1>(lines, sweep);
  if (lines.n <= 16) return sweep_in_registers<16, 1>(lines, sweep);
  if (lines.n <= 32) return sweep_in_registers<32, 1>(lines, sweep);
  if (lines.n <= 64) return sweep_in_registers<32, 2>(lines, sweep);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  int size = 128;
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

// Where a block keeps its problem. `f` and `g` are the sweeps' two numbers an entry (backward: the result and the gradient).
struct Layout {
  int stride, entries;       // of a matrix
  int table;                 // entries of a table's array
  int keys;                  // of a warp, for lines too long for registers
  int warps;
  bool in_shared;
  int matrices;
  int64_t matrix_bytes, shared_bytes;

  template <class T>
  static Layout of(const PairwiseCall& call) {
    Layout x{};
    const int M = int(call.M), N = int(call.N), longest = M > N ? M : N;
    x.stride = N | 1;  // odd: the lanes of a warp that walk down a column hit different banks
    x.entries = M * x.stride;
    x.table = longest;
    x.matrices = call.col_scores ? 4 : 3;
    if (longest > 64)
      for (x.keys = 128; x.keys < longest;) x.keys *= 2;
    x.matrix_bytes = (int64_t(x.entries) * x.matrices * sizeof(T) + 15) / 16 * 16;
    const int64_t tables = 8 * int64_t(x.table) * sizeof(T) + 2 * int64_t(longest) * sizeof(T) + 64;
    const int64_t most = max_shared_bytes() - 1024;  // the driver keeps some
    x.warps = longest > 64 ? 16 : longest > 16 ? 8 : 4;
    while (x.warps > 1 && tables + x.warps * x.keys * int64_t(sizeof(Key<T>)) > most) x.warps /= 2;
    x.shared_bytes = tables + x.warps * x.keys * int64_t(sizeof(Key<T>));
    if (x.shared_bytes > most)
      throw std::invalid_argument("scores: expected shorter rows and columns for this GPU's shared memory, got " +
                                  std::to_string(call.M) + " x " + std::to_string(call.N));
    x.in_shared = x.shared_bytes + x.matrix_bytes <= most;
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

template <class In, bool backward>
__global__ void pairwise_kernel(PairwiseCall call, Layout layout, const In* grad, In* out, In* out_cols,
                                unsigned char* scratch) {
  typedef typename Storage<In>::Compute T;
  LOUPE_DYNAMIC_SHARED(shared);
  unsigned char* memory = shared;
  Key<T>* keys = take<Key<T>>(memory, int64_t(layout.warps) * layout.keys);
  __shared__ LineTable<T> row_table, col_table;
  __shared__ int finite;
  T* arrays = take<T>(memory, 8 * int64_t(layout.table));
  T* totals = take<T>(memory, layout.table);
  T* along = take<T>(memory, layout.table);
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
    const In* scores = static_cast<const In*>(call.scores) + b * area;
    const In* col_scores = static_cast<const In*>(call.col_scores) + b * area;
    if (thread == 0) finite = 1;
    __syncthreads();
    if (M > 0 && N > 0) {
      if (M != M_of_table || N != N_of_table) {
        if (thread / 32 == 0) prepare(row_table, arrays, layout.table, M, N, call.p, lane);
        if (thread / 32 == (threads > 32)) prepare(col_table, arrays + 4 * layout.table, layout.table, N, M, call.p, lane);
        M_of_table = M;
        N_of_table = N;
      }
      bool ok = true;
      for (int e = thread; e < M * N; e += threads) {
        const int i = e / N, j = e % N, to = i * layout.stride + j;
        const T x = Storage<In>::widen(scores[i * call.N + j]);
        s[to] = x;
        ok = ok && x - x == 0;
        if (call.col_scores) {
          const T y = Storage<In>::widen(col_scores[i * call.N + j]);
          c[to] = y;
          ok = ok && y - y == 0;
        }
        f[to] = 0;
        if (backward) g[to] = Storage<In>::widen(grad[b * area + i * call.N + j]);
      }
      if (!ok) finite = 0;
      __syncthreads();
      const Lines<T> by_row{M, N, layout.stride, 1, s, &row_table};
      const Lines<T> by_col{N, M, 1, layout.stride, c, &col_table};
      if (!backward) sweep_lines(by_row, ForwardSweep<T>{f, g}, keys);
      __syncthreads();
      for (int j = thread; j < N; j += threads) {  // forward: of the rows' G; backward: of the gradient
        T sum = 0;
        for (int i = 0; i < M; ++i) sum += g[i * layout.stride + j];
        totals[j] = sum;
      }
      __syncthreads();
      if (!backward) sweep_lines(by_col, ForwardSweep<T>{f, g}, keys);
      __syncthreads();
      for (int i = thread; i < M; i += threads) {
        T sum = 0;
        for (int j = 0; j < N; ++j) sum += g[i * layout.stride + j];
        along[i] = sum;
      }
      __syncthreads();
      if (backward) {
        sweep_lines(by_row, BackwardSweep<T>{g, totals, f}, keys);
        __syncthreads();
        if (out_cols)
          for (int e = thread; e < M * N; e += threads) {
            const int i = e / N, j = e % N, at = i * layout.stride + j;
            out[b * area + i * call.N + j] = Storage<In>::narrow(finite ? f[at] : nan);
            f[at] = 0;
          }
        __syncthreads();
        sweep_lines(by_col, BackwardSweep<T>{g, along, f}, keys);
        __syncthreads();
      }
    }
    In* last = backward && out_cols ? out_cols : out;
    for (int e = thread; e < area; e += threads) {
      const int i = int(e / call.N), j = int(e % call.N), at = i * layout.stride + j;
      const bool inside = i < M && j < N;
      T x = inside ? f[at] : T(0);
      if (inside && !backward) x -= totals[j] + along[i];
      if (!valid || (inside && !finite)) x = nan;
      last[b * area + e] = Storage<In>::narrow(x);
      if (last != out && !inside) out[b * area + e] = Storage<In>::narrow(x);
    }
    __syncthreads();
  }
}

template <bool backward>
void launch(const PairwiseCall& call, const void* grad, void* out, void* out_cols, void* scratch, void* stream) {
  if (call.B == 0 || call.M == 0 || call.N == 0) return;
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    const Layout layout = Layout::of<typename Storage<In>::Compute>(call);
    LOUPE_LAUNCH((pairwise_kernel<In, backward>), unsigned(layout.blocks(call.B)), unsigned(32 * layout.warps),
                 layout.shared_bytes, stream, call, layout, static_cast<const In*>(grad), static_cast<In*>(out),
                 static_cast<In*>(out_cols), static_cast<unsigned char*>(scratch));
  });
}

}  // namespace

int64_t pairwise_scratch_bytes_cuda(const PairwiseCall& call) {
  if (call.B == 0 || call.M == 0 || call.N == 0) return 0;
  const Layout layout = call.dtype == DType::f64 ? Layout::of<double>(call) : Layout::of<float>(call);
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
