// Exact pair interactions of problems with M, N <= 64: a thread per line. A block takes several problems of the batch at a
// time; its first warps take their rows, its others their columns, both at once. Forward, every thread sorts its line, puts
// G of its entries into a tile of its direction, sums the other direction's G over its line, and puts F + G less that sum in
// place of its G; the result is the sum of both tiles. Backward, it gathers the gradient in its order and puts the line's
// part into its tile. No atomics, and a problem's arithmetic does not depend on its place in a block: the same bits always.
#pragma once

#include "short_lines.cuh"

namespace loupe {
namespace {

// The weights of a sorted line's places for F and G, for a direction's share of the game. `below` sums those of the places
// after it, `own` is what the place carries itself; backward, `below` starts with the entry's own a and b.
struct Weights {
  float f, g;
};
struct ShortTable {
  float a, b;  // forward: of F + G and of G
  Weights *below, *own;
};

// By one thread, in double: the weights of `lines` lines with n entries, 0 of the places from n to `size`; as in
// LineWeights, from a table of its atoms.
template <bool backward>
__device__ void prepare_short(ShortTable& table, int lines, int n, int size, double p, double share, const double* atoms) {
  const bool shapley = LineWeights::shapley(p);
  const double* terms = atoms + (shapley ? n : 0);
  double sum = 0, excess = 0;
#pragma unroll 1
  for (int t = 0; t < lines; ++t) {
    sum += terms[t];
    excess += terms[t] - terms[lines - 1];
  }
  const double mean = share * sum / lines, lone = lines > 1 ? share * excess / (double(lines) * (lines - 1)) : 0;
  const double empty = shapley ? 1 : atoms[n - 1], a = empty * mean, b = empty * lone;
  table.a = float(a + b);
  table.b = float(b);
#pragma unroll 1
  for (int k = n; k < size; ++k) {
    table.below[k] = {};
    if (backward) table.own[k] = {};
  }
  double f = 0, g = 0;
#pragma unroll 1
  for (int k = n - 1; k >= 0; --k) {
    table.below[k] = backward ? Weights{float(a + f), float(b + g)} : Weights{float(f + g), float(g)};
    double w = 0, v = 0;  // the last of them, of place 0, are of no pair
    if (k > 0) {
      w = shapley ? share * atoms[k] * atoms[lines + k] : p * atoms[k - 1] * mean;
      v = !shapley ? p * atoms[k - 1] * lone : lines > 1 ? w * atoms[lines + k - 1] : 0;
    }
    if (backward) table.own[k] = {float(w), float(v)};
    f += w;
    g += v;
  }
}

// Shared memory of a block: the atoms of the weights; by problem or for all of them the heads and weights, rows first; tiles
// of rows, of columns and, backward, of the gradient, each with room behind it for what is no entry; then lengths and flags.
struct ShortLayout : ShortBlock {
  int heads, below, own, row_tile, col_tile, gradient, totals, lengths;  // where they begin, in bytes
  int shared_bytes;

  static ShortLayout of(const PairwiseCall& call, bool backward) {
    const int M = int(call.M), N = int(call.N);
    ShortLayout x{ShortBlock::of(call)};
    const int weights = x.tables * (x.row_size + x.col_size) * int(sizeof(Weights));
    const int tile = x.tile_floats(N) * int(sizeof(float));
    x.heads = (M + N + 1) * int(sizeof(double));
    x.below = x.heads + 2 * x.tables * int(sizeof(Weights));
    x.own = x.below + weights;
    x.row_tile = x.own + (backward ? weights : 0);
    x.col_tile = x.row_tile + tile;
    x.gradient = x.col_tile + tile;
    x.totals = x.gradient + x.all * int(sizeof(float));
    x.lengths = x.gradient + (backward ? tile : 0);
    x.shared_bytes = x.lengths + 3 * x.problems * int(sizeof(int));
    return x;
  }
};

// part = F + G by places of the order; G of every entry to `mine`.
template <int S, class Key>
__device__ inline void sweep_forward(const Key* key, Weights head, Shared<Weights> below, Shared<float> mine, float* part) {
  float f = 0, g = 0, x_below = 0;
#pragma unroll
  for (int k = S - 1; k >= 0; --k) {
    const float x = key[k].value(), drop = k + 1 < S ? x - x_below : 0.0f;
    const Weights after = below[k];
    f += drop * after.f;
    g += drop * after.g;
    x_below = x;
    part[k] = head.f * x + f;
    mine.at_byte(key[k].template at<false>()) = head.g * x + g;
  }
}

template <int S, class Key>
__device__ inline void put_line(const Key* key, const float* part, float sum, Shared<float> mine) {
#pragma unroll
  for (int k = 0; k < S; ++k) mine.at_byte(key[k].template at<false>()) = part[k] - sum;
}

// The gradient of every entry to `mine`, from that of F + G (`gradient`) and of G (gradient - across). `before`: 0, or NaN.
template <int S, class Key>
__device__ inline void sweep_backward(const Key* key, Shared<Weights> below, Shared<Weights> own, Shared<float> gradient,
                                      Shared<float> across, float before, Shared<float> mine) {
  float f_above = before, g_above = before;
#pragma unroll
  for (int k = 0; k < S; ++k) {
    const int at = key[k].template at<true>();
    const float f = gradient.at_byte(at), g = f - across.at_byte(at);
    const Weights here = own[k], after = below[k];
    mine.at_byte(at) = f * after.f + g * after.g - (f_above * here.f + g_above * here.g);
    f_above += f;
    g_above += g;
  }
}

template <class In, int P, bool backward>
__global__ void __launch_bounds__(ShortBlock::kThreads, blocks_of_an_sm<P>())
    pairwise_short_kernel(const PairwiseCall call, const ShortLayout layout, const In* grad, In* out, In* out_cols) {
  typedef typename ShortKey<In>::Type Key;
  LOUPE_DYNAMIC_SHARED(shared);
  const int M = int(call.M), N = int(call.N), area = M * N, thread = int(threadIdx.x), weights = layout.row_size + layout.col_size;
  double* atoms = reinterpret_cast<double*>(shared);
  Weights* heads = reinterpret_cast<Weights*>(shared + layout.heads);  // a and b of rows and of columns
  Weights* below = reinterpret_cast<Weights*>(shared + layout.below);
  Weights* own = reinterpret_cast<Weights*>(shared + layout.own);
  float* row_tile = reinterpret_cast<float*>(shared + layout.row_tile);
  float* col_tile = reinterpret_cast<float*>(shared + layout.col_tile);
  float* gradient = reinterpret_cast<float*>(shared + layout.gradient);
  float* totals = reinterpret_cast<float*>(shared + layout.totals);  // of the gradient, over columns
  int* rows = reinterpret_cast<int*>(shared + layout.lengths);
  int* cols = rows + layout.problems;
  int* fine = cols + layout.problems;
  const ShortProblems problems{call, layout, M, N, rows, cols, fine};
  const bool ragged = problems.ragged();
  const ShortThread own_line = ShortThread::of(layout, M, N);
  const bool is_row = own_line.is_row;
  const int problem = own_line.problem, place = own_line.place, base = own_line.base;
  const int network = is_row ? layout.row_size : layout.col_size;

#pragma unroll 1
  for (int k = thread; k <= M + N; k += int(blockDim.x)) atoms[k] = LineWeights::atom(k, call.p);
  problems.open(int64_t(blockIdx.x) * layout.problems);
  __syncthreads();
  bool prepared = false;
#pragma unroll 1
  for (int64_t first = int64_t(blockIdx.x) * layout.problems; first < call.B; first += int64_t(gridDim.x) * layout.problems) {
    const int count = call.B - first < layout.problems ? int(call.B - first) : layout.problems;
    if (ragged) {
      problems.open(first);
      __syncthreads();
    }
#pragma unroll 1
    for (int side = 0; side < (call.col_scores ? 2 : 1); ++side) {
      const auto tile = Shared<float>::of(side ? col_tile : row_tile);
      const In* from = static_cast<const In*>(side ? call.col_scores : call.scores) + first * area;
      for_each_loaded(from, count * area, [&](int e, float x) {
        if (!problems.put(e, x, tile, ragged)) fine[problems.of(e)] = 0;
      });
    }
    if (backward) {
      const auto tile = Shared<float>::of(gradient);
      for_each_loaded(grad + first * area, count * area, [&](int e, float x) { tile[problems.at(e)] = x; });
    }
    if (!prepared && thread < 2 * layout.tables && thread / 2 < count && rows[thread / 2] > 0) {
      const int b = thread / 2, m = rows[b], n = cols[b], at = b * weights;
      ShortTable filled{0, 0, below + at, own + at};
      if (thread % 2 == 0) {
        prepare_short<backward>(filled, m, n, layout.row_size, call.p, call.has_rows() ? call.share() : 0, atoms);
      } else {
        filled.below += layout.row_size;
        filled.own += layout.row_size;
        prepare_short<backward>(filled, int(call.columns_of_a_game(n)), m, layout.col_size, call.p, call.share(), atoms);
      }
      heads[thread] = {filled.a, filled.b};
    }
    prepared = !ragged;
    __syncthreads();

    int step = is_row ? 1 : layout.stride;
#ifdef __CUDACC__
    asm volatile("" : "+r"(step));  // or the places of a line's entries are made before the loop, and fill the registers
#endif
    const bool inside = problem < count && place < (is_row ? rows[problem] : cols[problem]);
    const ShortLine line{inside ? (is_row ? cols[problem] : rows[problem]) : 0, step,
                         is_row ? N : layout.all + problem * N + place - base};
    const auto mine = Shared<float>::of((is_row ? row_tile : col_tile) + base);
    const int table = (ragged ? problem : 0) * weights + (is_row ? 0 : layout.row_size);
    const auto after = Shared<Weights>::of(below + table), here = Shared<Weights>::of(own + table);
    Key key[P];
    if (inside) {
      const auto scores = Shared<float>::of((call.col_scores && !is_row ? col_tile : row_tile) + base);
      with_size<P>(network, [&](auto size) { take_line<decltype(size)::value, backward>(key, scores, line); });
    }
    if constexpr (backward) {
      const auto gradients = Shared<float>::of(gradient + base);
      float sum = 0;
#pragma unroll 4
      for (int k = 0; k < line.n; ++k) sum += gradients[k * step];
      if (inside) (is_row ? gradient[base + N] : totals[problem * N + place]) = sum;
      __syncthreads();
      if (inside && is_row && !call.has_rows()) {
        for (int k = 0; k < line.n; ++k) mine[k] = fine[problem] ? 0.0f : NAN;
      } else if (inside) {
        const auto across = Shared<float>::of(is_row ? totals + problem * N : gradient + problem * layout.size + N);
        const float before = fine[problem] ? 0.0f : NAN;
        with_size<P>(network, [&](auto size) {
          sweep_backward<decltype(size)::value>(key, after, here, gradients, across, before, mine);
        });
      }
    } else {
      __syncthreads();
      float part[P];
      if (inside) {
        const Weights head = heads[(ragged ? 2 * problem : 0) + !is_row];
        with_size<P>(network, [&](auto size) {
          sweep_forward<decltype(size)::value>(key, head, after, mine, part);
        });
      }
      __syncthreads();
      float sum = inside && !fine[problem] ? NAN : 0.0f;
      const auto others = Shared<float>::of((is_row ? col_tile : row_tile) + base);
#pragma unroll 4
      for (int k = 0; k < line.n; ++k) sum += others[k * step];
      __syncthreads();
      if (inside)
        with_size<P>(network, [&](auto size) { put_line<decltype(size)::value>(key, part, sum, mine); });
    }
    __syncthreads();

    const auto row_parts = Shared<float>::of(row_tile), col_parts = Shared<float>::of(col_tile);
    const auto store = [&](In* to, bool of_rows, bool of_cols) {
#pragma unroll 4
      for (int e = thread; e < count * area; e += int(blockDim.x)) {
        const int at = problems.at(e);
        float x = (of_rows ? row_parts[at] : 0.0f) + (of_cols ? col_parts[at] : 0.0f);
        if (ragged && problems.outside(e)) x = problems.outside_value(problems.of(e));
        to[first * area + e] = Storage<In>::narrow(x);
      }
    };
    store(out, true, !(backward && out_cols));
    if (backward && out_cols) store(out_cols, false, true);
    if (!ragged) problems.open(first + int64_t(gridDim.x) * layout.problems);
    __syncthreads();
  }
}

template <class In, int P, bool backward>
void launch_short_of(const PairwiseCall& call, const void* grad, void* out, void* out_cols, void* stream) {
  const ShortLayout layout = ShortLayout::of(call, backward);
  const int64_t tiles = (call.B + layout.problems - 1) / layout.problems;
  const int64_t most = int64_t(multiprocessors()) * blocks_of_an_sm<P>();
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
