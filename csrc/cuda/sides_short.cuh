// Values (order 1) and same-side pairs (order 2) of problems with M, N <= 64: a thread per line, which is a player's as well. A
// block takes several problems at a time. Forward, every thread sorts its line, puts H of its entries into a tile of its
// direction and the line's two sums beside; then it adds up H of its player in the other direction's lines, or the smaller
// of H of two players. Backward, it collects what reaches H of its entries, then sorts its line and puts the gradient in
// their place. No atomics, and a problem's arithmetic does not depend on its place in a block: the same bits always.
#pragma once

#include "../core/sides.h"
#include "lines.cuh"
#include "short_lines.cuh"

namespace loupe {
namespace {

struct Results {  // or, for backward, their gradients, which are read
  void *regions, *phrases;
};

// What place k of a sorted line carries: `own` in the line's sum, `other` in the sum over all lines; H rises by `slope` from
// a place to the one above it. Everything times the direction's share of the game.
struct SideWeights {
  double own, other, share;
  LineWeights line;
  int order;

  __device__ double slope(int k) const { return share * line.w(order == 1 ? k + 1 : k < 1 ? 1 : k); }

  // Calls put(k, weights) for the places of `lines` lines with n entries; by one warp.
  template <class Put>
  __device__ static void by_warp(int lines, int n, const PairwiseCall& call, int order, int lane, const Put& put) {
    LinePairWeights pair = LinePairWeights::start(weights_by_warp(lines, n, call.p, lane));
    double c_sum = 0, d_sum = 0;
    for (int t = lane; order == 2 && t < pair.terms(); t += 32) {
      c_sum += pair.c_term(t);
      d_sum += pair.d_term(t);
    }
    pair.finish(warp_sum(c_sum), warp_sum(d_sum));
    SideWeights weights{0, 0, call.share(), pair.line, order};
    double c_carry = pair.c_last, d_carry = pair.d_last;  // of the places after this round's
    for (int base = (n - 1) / 32 * 32; base >= 0; base -= 32) {
      const int k = base + lane, r = k + 1;
      double c = order == 2 && r < n ? pair.c_step(r) : 0, d = order == 2 && r < n ? pair.d_step(r) : 0;
      for (int distance = 1; distance < 32; distance *= 2) {  // become the sums from this lane on
        const double more_c = __shfl_down_sync(kWarp, c, distance, 32), more_d = __shfl_down_sync(kWarp, d, distance, 32);
        if (lane + distance < 32) {
          c += more_c;
          d += more_d;
        }
      }
      if (k < n) {
        const double other = order == 1 ? pair.line.v(r) : d_carry + d;
        weights.own = weights.share * (other + (order == 1 ? pair.line.w(r) : c_carry + c));
        weights.other = weights.share * other;
        put(k, weights);
      }
      c_carry += __shfl_sync(kWarp, c, 0, 32);
      d_carry += __shfl_sync(kWarp, d, 0, 32);
    }
  }
};

// The same in float, 0 of the places from n on. Forward, `slope` is what it is beyond that of the last place, which is the
// whole line's; backward, `step` is how much less it is than at the place before.
struct alignas(16) ShortSideWeights {
  float own, other, slope, step;
};

struct alignas(16) FourSquares {
  float of[4];
};

// Shared memory of a block: the weights, by problem or for all of them, rows first; tiles of rows, of columns and of the scores;
// a matrix of each side's pairs, whose rows are an odd number of sixteen bytes apart; numbers of each line; then lengths and
// flags.
struct SidesShortLayout : ShortBlock {
  int region_step, phrase_step;  // floats of a row of pairs
  int row_tile, col_tile, scores, col_scores, region_pairs, phrase_pairs, heads, own, other, lengths;  // where they begin, in bytes
  int shared_bytes;

  static int step_of(int players) { return (players + 3) / 4 * 4 + ((players + 3) / 4 % 2 ? 0 : 4); }
  static SidesShortLayout of(const PairwiseCall& call, int order, bool backward) {
    const int M = int(call.M), N = int(call.N);
    SidesShortLayout x{ShortBlock::of(call)};
    x.region_step = step_of(M);
    x.phrase_step = step_of(N);
    int end = x.tables * (x.row_size + x.col_size) * int(sizeof(ShortSideWeights));
    const auto take = [&end](bool there, int floats) {
      const int begin = end;
      if (there) end += (floats * int(sizeof(float)) + 15) / 16 * 16;
      return begin;
    };
    const int tile = x.tile_floats(N), lines = x.problems * (M + N);
    x.row_tile = take(true, tile);
    x.col_tile = take(true, tile);
    x.scores = take(true, x.all);
    x.col_scores = call.col_scores ? take(true, x.all) : x.scores;
    x.region_pairs = take(order == 2, x.problems * M * x.region_step);
    x.phrase_pairs = take(order == 2, x.problems * N * x.phrase_step);
    x.heads = take(!backward, 2 * x.tables);
    x.own = take(true, lines);
    x.other = take(!backward, lines);
    x.lengths = take(true, 3 * x.problems);
    x.shared_bytes = end;
    return x;
  }
  static bool fits(const PairwiseCall& call, int order, bool backward) {
    return ShortBlock::fits(call) && of(call, order, backward).shared_bytes <= max_shared_bytes() - 1024;
  }
};

// H of every entry to `mine`; adds to the line's sums.
template <int S, class Key>
__device__ inline void sweep_heights(const Key* key, float head, Shared<ShortSideWeights> weights, Shared<float> mine, float& own,
                                     float& other) {
  float height = 0, x_below = 0;
#pragma unroll
  for (int k = S - 1; k >= 0; --k) {
    const float x = key[k].value(), drop = k + 1 < S ? x - x_below : 0.0f;
    const ShortSideWeights here = weights[k];
    height += drop * here.slope;
    own += x * here.own;
    other += x * here.other;
    x_below = x;
    mine.at_byte(key[k].template at<false>()) = head * x + height;
  }
}

// The gradient of every entry in place of what reaches its H. `own` and `shared`: what reaches the line's sum, and the sum over
// all lines. `before`: 0, or NaN.
template <int S, class Key>
__device__ inline void sweep_gradient(const Key* key, Shared<ShortSideWeights> weights, float own, float shared, float before,
                                      Shared<float> mine) {
  float above = before;
#pragma unroll
  for (int k = 0; k < S; ++k) {
    const int at = key[k].template at<true>();
    const float part = mine.at_byte(at);
    const ShortSideWeights here = weights[k];
    mine.at_byte(at) = part * here.slope - above * here.step + own * here.own + shared * here.other;
    above += part;
  }
}

// part = minus the sum of the squares of the line's pairs in which an entry is the lower: the smaller, or of equal ones the one
// of higher index.
__device__ inline void collect_pairs(ShortLine line, Shared<float> scores, Shared<FourSquares> squares, int square_step,
                                     Shared<float> part) {
#pragma unroll 1
  for (int first = 0; first < line.n; first += 4) {
    float x[4], sum[4] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) x[q] = scores[(first + q < line.n ? first + q : line.n - 1) * line.step];
    const auto meet = [&](int l, int lower) {  // those from `lower` on come after l
      const float y = scores[l * line.step];
      const FourSquares square = squares[(l * square_step + first) / 4];
#pragma unroll
      for (int q = 0; q < 4; ++q)
        if (q >= lower ? x[q] <= y : x[q] < y) sum[q] -= square.of[q];
    };
#pragma unroll 2
    for (int l = 0; l < first; ++l) meet(l, 0);
#pragma unroll
    for (int q = 0; q < 4; ++q)
      if (first + q < line.n) meet(first + q, q + 1);
#pragma unroll 2
    for (int l = first + 4; l < line.n; ++l) meet(l, 4);
#pragma unroll
    for (int q = 0; q < 4; ++q)
      if (first + q < line.n) part[(first + q) * line.step] = sum[q];
  }
}

// Calls work(tensor, of its type) with a tensor of float32 or of a half type.
template <class Work>
__device__ inline void with_type(const void* tensor, DType dtype, const Work& work) {
  if (dtype == DType::f16) work(static_cast<const Float16*>(tensor));
  else if (dtype == DType::bf16) work(static_cast<const BFloat16*>(tensor));
  else work(static_cast<const float*>(tensor));
}

template <int P, bool backward>
__global__ void __launch_bounds__(ShortBlock::kThreads, blocks_of_an_sm<P>())
    sides_short_kernel(const PairwiseCall call, const int order, const SidesShortLayout layout, const Results results, void* out,
                       void* out_cols) {
  LOUPE_DYNAMIC_SHARED(shared);
  const int M = int(call.M), N = int(call.N), area = M * N, thread = int(threadIdx.x), threads = int(blockDim.x);
  const int weights_size = layout.row_size + layout.col_size;
  ShortSideWeights* weights = reinterpret_cast<ShortSideWeights*>(shared);
  float* row_tile = reinterpret_cast<float*>(shared + layout.row_tile);
  float* col_tile = reinterpret_cast<float*>(shared + layout.col_tile);
  float* scores = reinterpret_cast<float*>(shared + layout.scores);
  float* col_scores = reinterpret_cast<float*>(shared + layout.col_scores);
  float* region_pairs = reinterpret_cast<float*>(shared + layout.region_pairs);
  float* phrase_pairs = reinterpret_cast<float*>(shared + layout.phrase_pairs);
  float* heads = reinterpret_cast<float*>(shared + layout.heads);
  // Forward, each line's two sums; backward, what reaches `own`. Regions first, of all problems.
  float *own = reinterpret_cast<float*>(shared + layout.own), *other = reinterpret_cast<float*>(shared + layout.other);
  int* rows = reinterpret_cast<int*>(shared + layout.lengths);
  int* cols = rows + layout.problems;
  int* fine = cols + layout.problems;
  const ShortProblems problems{call, layout, M, N, rows, cols, fine};
  const bool ragged = problems.ragged();

  const ShortThread own_line = ShortThread::of(layout, M, N);
  const bool is_row = own_line.is_row;
  const int problem = own_line.problem, place = own_line.place, base = own_line.base;
  const int network = is_row ? layout.row_size : layout.col_size;
  const int of_phrases = layout.problems * M;  // where phrases begin in `own` and `other`
  const int players_at = is_row ? problem * M : of_phrases + problem * N, others_at = is_row ? of_phrases + problem * N : problem * M;

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
    for (int side = 0; side < (call.col_scores ? 2 : 1); ++side)
      with_type(side ? call.col_scores : call.scores, call.dtype, [&](auto from) {
        const auto tile = Shared<float>::of(side ? col_scores : scores);
        for_each_loaded(from + first * area, count * area, [&](int e, float x) {
          if (!problems.put(e, x, tile, ragged)) fine[problems.of(e)] = 0;
        });
      });
#pragma unroll 1
    for (int side = 0; backward && side < 2; ++side) {
      const int players = side ? N : M, step = side ? layout.phrase_step : layout.region_step;
      const Divisor by = side ? layout.by_columns : layout.by_rows;
      with_type(side ? results.phrases : results.regions, call.dtype, [&](auto from) {
        if (order == 1) {
          const auto to = Shared<float>::of(own + (side ? of_phrases : 0));
          for_each_loaded(from + first * players, count * players, [&](int e, float x) { to[e] = x; });
        } else {
          const auto to = Shared<float>::of(side ? phrase_pairs : region_pairs);
          for_each_loaded(from + first * players * players, count * players * players,
                          [&](int e, float x) { to[e + by.divide(e) * (step - players)] = x; });
        }
      });
    }
    if (!prepared) {
      for (int t = thread / 32; t < 2 * layout.tables; t += threads / 32) {
        const int b = t / 2, m = b < count ? rows[b] : 0, n = b < count ? cols[b] : 0;
        if (m == 0) continue;
        const bool by_row = t % 2 == 0;
        const int size = by_row ? layout.row_size : layout.col_size, length = by_row ? n : m, lane = thread % 32;
        ShortSideWeights* table = weights + b * weights_size + (by_row ? 0 : layout.row_size);
        SideWeights::by_warp(by_row ? m : int(call.columns_of_a_game(n)), length, call, order, lane,
                             [&](int k, const SideWeights& here) {
                               const double slope = here.slope(k), last = here.slope(length - 1);
                               const double step = k > 0 ? here.slope(k - 1) - slope : 0;
                               table[k] = {float(here.own), float(here.other), float(backward ? slope : slope - last), float(step)};
                               if (!backward && k == 0) heads[t] = float(last);
                             });
        for (int k = length + lane; k < size; k += 32) table[k] = {};
      }
    }
    prepared = !ragged;
    __syncthreads();

    int step = is_row ? 1 : layout.stride;
#ifdef __CUDACC__
    asm volatile("" : "+r"(step));  // or the places of a line's entries are made before the loop, and fill the registers
#endif
    const bool inside = problem < count && place < (is_row ? rows[problem] : cols[problem]);
    const bool has_lines = !is_row || call.has_rows();  // a game without rows has regions, but no lines of theirs
    const int players = inside ? (is_row ? rows[problem] : cols[problem]) : 0;
    const ShortLine line{inside ? (is_row ? cols[problem] : rows[problem]) : 0, step,
                         is_row ? N : layout.all + problem * N + place - base};
    const auto mine = Shared<float>::of((is_row ? row_tile : col_tile) + base);
    const auto from = Shared<float>::of((is_row ? scores : col_scores) + base);
    const auto table = Shared<ShortSideWeights>::of(weights + (ragged ? problem : 0) * weights_size + (is_row ? 0 : layout.row_size));
    const int pair_step = is_row ? layout.region_step : layout.phrase_step;
    float* pairs = is_row ? region_pairs + problem * M * pair_step : phrase_pairs + problem * N * pair_step;
    const auto sum_of = [](const float* x, int n) {
      float sum = 0;
#pragma unroll 4
      for (int k = 0; k < n; ++k) sum += x[k];
      return sum;
    };
    if constexpr (!backward) {
      if (inside) {
        float own_sum = 0, other_sum = 0;
        const float head = heads[(ragged ? 2 * problem : 0) + !is_row];
        if (has_lines)
          with_size<P>(network, [&](auto size) {
            constexpr int S = decltype(size)::value;
            WideKey key[S];
            take_line<S, false>(key, from, line);
            sweep_heights<S>(key, head, table, mine, own_sum, other_sum);
          });
        own[players_at + place] = own_sum;
        other[players_at + place] = other_sum;
      }
      __syncthreads();
      const auto heights = Shared<float>::of((is_row ? col_tile : row_tile) + base);  // of this player in the other's lines
      const int lines = is_row || call.has_rows() ? line.n : 0;
      const float all = sum_of(other + players_at, players);
      if (order == 1) {
        float x = 0;
#pragma unroll 4
        for (int k = 0; k < lines; ++k) x += heights[k * step];
        if (problem < count) {
          x = inside ? (fine[problem] ? own[players_at + place] - all + x : NAN) : problems.outside_value(problem);
          store_narrow(is_row ? results.regions : results.phrases, call.dtype, (first + problem) * (is_row ? M : N) + place, x);
        }
      } else if (inside) {
        pairs[place * pair_step + place] = 0;
        const int player_step = is_row ? layout.stride : 1;
#pragma unroll 1
        for (int from_here = 1; 2 * from_here <= players; from_here += 4) {
          float sum[4] = {};
          int l[4];
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const int away = 2 * (from_here + q) <= players ? from_here + q : players / 2;
            l[q] = place + away < players ? place + away : place + away - players;
          }
#pragma unroll 2
          for (int k = 0; k < lines; ++k) {
            const float x = heights[k * step];
#pragma unroll
            for (int q = 0; q < 4; ++q) sum[q] += fminf(x, heights[k * step + (l[q] - place) * player_step]);
          }
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const float x = all - (own[players_at + place] + own[players_at + l[q]]) - sum[q];
            if (2 * (from_here + q) > players || (2 * (from_here + q) == players && place > l[q])) continue;  // another's
            pairs[place * pair_step + l[q]] = x;
            pairs[l[q] * pair_step + place] = x;
          }
        }
      }
      __syncthreads();
      for (int side = 0; order == 2 && side < 2; ++side) {
        const int n = side ? N : M;
        const Divisor by = side ? layout.by_columns : layout.by_rows;
        const auto done = Shared<float>::of(side ? phrase_pairs : region_pairs);
        void* to = side ? results.phrases : results.regions;
        for (int e = thread; e < count * n * n; e += threads) {
          const int row = by.divide(e), b = by.divide(row), most = side ? cols[b] : rows[b];
          const bool there = row - b * n < most && e - row * n < most;
          const float x = done[e + row * ((side ? layout.phrase_step : layout.region_step) - n)];
          store_narrow(to, call.dtype, first * n * n + e, there ? (fine[b] ? x : NAN) : problems.outside_value(b));
        }
      }
    } else {
      if (order == 2) {  // the sum of both gradients of a pair, and what reaches the lines
        for (int l = 0; l < place && inside; ++l) {
          float &x = pairs[place * pair_step + l], &y = pairs[l * pair_step + place];
          x = y = x + y;
        }
        if (inside) pairs[place * pair_step + place] = 0;
        __syncthreads();
        float sum = 0;
        for (int l = 0; l < players; ++l) sum += pairs[l * pair_step + place];
        if (inside) own[players_at + place] = -sum;
        __syncthreads();
      }
      if (inside && !has_lines) {
        for (int k = 0; k < line.n; ++k) mine[k * step] = fine[problem] ? 0.0f : NAN;
      } else if (inside) {
        if (order == 1) {
          for (int k = 0; k < line.n; ++k) mine[k * step] = own[others_at + k];
        } else {
          const int square_step = is_row ? layout.phrase_step : layout.region_step;
          const float* squares = is_row ? phrase_pairs + problem * N * square_step : region_pairs + problem * M * square_step;
          collect_pairs(line, from, Shared<FourSquares>::of(reinterpret_cast<FourSquares*>(const_cast<float*>(squares))),
                        square_step, mine);
        }
        const float every = -sum_of(own + players_at, players) * (order == 1 ? 1.0f : 0.5f);
        const float line_own = own[players_at + place], before = fine[problem] ? 0.0f : NAN;
        with_size<P>(network, [&](auto size) {
          constexpr int S = decltype(size)::value;
          WideKey key[S];
          take_line<S, true>(key, from, line);
          sweep_gradient<S>(key, table, line_own, every, before, mine);
        });
      }
      __syncthreads();
      const auto row_parts = Shared<float>::of(row_tile), col_parts = Shared<float>::of(col_tile);
      const auto store = [&](void* to, bool of_rows, bool of_cols) {
        for (int e = thread; e < count * area; e += threads) {
          const int at = problems.at(e);
          float x = (of_rows ? row_parts[at] : 0.0f) + (of_cols ? col_parts[at] : 0.0f);
          if (ragged && problems.outside(e)) x = problems.outside_value(problems.of(e));
          store_narrow(to, call.dtype, first * area + e, x);
        }
      };
      store(out, true, !out_cols);
      if (out_cols) store(out_cols, false, true);
    }
    if (!ragged) {
      __syncthreads();
      problems.open(first + int64_t(gridDim.x) * layout.problems);
    }
    __syncthreads();
  }
}

template <int P, bool backward>
void launch_short_of(const PairwiseCall& call, int order, const Results& results, void* out, void* out_cols, void* stream) {
  const SidesShortLayout layout = SidesShortLayout::of(call, order, backward);
  const int64_t tiles = (call.B + layout.problems - 1) / layout.problems;
  const int64_t most = int64_t(multiprocessors()) * blocks_of_an_sm<P>();
  LOUPE_LAUNCH((sides_short_kernel<P, backward>), unsigned(tiles < most ? tiles : most), unsigned(layout.threads),
               layout.shared_bytes, stream, call, order, layout, results, out, out_cols);
}

template <bool backward>
void launch_short(const PairwiseCall& call, int order, const Results& results, void* out, void* out_cols, void* stream) {
  const int64_t longest = call.M > call.N ? call.M : call.N;
  if (longest <= 16) launch_short_of<16, backward>(call, order, results, out, out_cols, stream);
  else if (longest <= 32) launch_short_of<32, backward>(call, order, results, out, out_cols, stream);
  else launch_short_of<64, backward>(call, order, results, out, out_cols, stream);
}

}  // namespace
}  // namespace loupe
