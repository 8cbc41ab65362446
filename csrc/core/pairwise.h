// The weights of one line (a row, or a column) of a game's exact cross pair interactions; host and device.
// python_ref/pairwise.py derives them; M is the number of lines, N the number of entries of each.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace loupe {

// The max-mean game is half its rows and half its columns. MaxSim is a sum of games of one line each: its columns.
enum class Game : int { max_mean, maxsim };

// One call of an op. Tensors are dense and contiguous; null means absent.
struct PairwiseCall {
  const void* scores;             // [B, M, N]
  const void* col_scores;         // [B, M, N] or null: the same as scores
  const int64_t* region_lengths;  // [B] or null
  const int64_t* phrase_lengths;  // [B] or null
  int64_t B, M, N;
  DType dtype;
  double p;  // NaN: Shapley; otherwise the p-weighted Banzhaf index
  Game game;

  LOUPE_INLINE_HD bool has_rows() const { return game == Game::max_mean; }
  LOUPE_INLINE_HD double share() const { return game == Game::max_mean ? 0.5 : 1; }  // of a direction in the game
  LOUPE_INLINE_HD int64_t columns_of_a_game(int64_t N) const { return game == Game::max_mean ? N : 1; }
};

// F(x) = a x + sum_below (x - x') w(r),  G(x) = b x + sum_below (x - x') v(r), r = 1 .. N - 1.
struct LineWeights {
  int64_t M, N;
  double p, q;
  const double* table;   // of atom(k), k = 0 .. M + N, or null: computed where it is needed
  double in_mean, lone;  // means over t = 0 .. M-1, of term(t) and of term(t) - term(M-1), the latter also over M-1 lines
  double a, b;

  LOUPE_INLINE_HD static bool shapley(double p) { return p != p; }
  // What all weights are products of: 1/k for the Shapley index, q^k for the Banzhaf index.
  LOUPE_INLINE_HD static double atom(int64_t k, double p) { return shapley(p) ? 1.0 / double(k) : pow(1 - p, double(k)); }
  LOUPE_INLINE_HD double atom(int64_t k) const { return table ? table[k] : atom(k, p); }

  LOUPE_INLINE_HD static LineWeights start(int64_t M, int64_t N, double p, const double* table = nullptr) {
    return {M, N, p, 1 - p, table, 0, 0, 0, 0};
  }
  LOUPE_INLINE_HD double term(int64_t t) const { return atom(shapley(p) ? N + t : t); }
  // From the sums of term(t) and of term(t) - term(M-1), which would cancel if it were taken from the first.
  LOUPE_INLINE_HD void finish(double sum, double excess) {
    in_mean = sum / double(M);
    lone = M > 1 ? excess / (double(M) * double(M - 1)) : 0;
    const double empty = shapley(p) ? 1.0 : atom(N - 1);
    a = empty * in_mean;
    b = empty * lone;
  }
  LOUPE_INLINE_HD static LineWeights of(int64_t M, int64_t N, double p, const double* table) {
    LineWeights line = start(M, N, p, table);
    const double last = line.term(M - 1);
    double sum = 0, excess = 0;
    for (int64_t t = 0; t < M; ++t) {
      const double term = line.term(t);
      sum += term;
      excess += term - last;
    }
    line.finish(sum, excess);
    return line;
  }
  LOUPE_INLINE_HD double w(int64_t r) const { return shapley(p) ? atom(r) * atom(M + r) : p * atom(r - 1) * in_mean; }
  LOUPE_INLINE_HD double v(int64_t r) const {
    if (!shapley(p)) return p * atom(r - 1) * lone;
    return M > 1 ? atom(r) * atom(M + r - 1) * atom(M + r) : 0;
  }
};

}  // namespace loupe
