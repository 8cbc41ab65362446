// The weights of one line (a row, or a column) of the max-mean game's exact pair interactions; host and device.
// python_ref/pairwise.py derives them; M is the number of lines, N the number of entries of each.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace loupe {

// One call of the op. Tensors are dense and contiguous; null means absent.
struct PairwiseCall {
  const void* scores;             // [B, M, N]
  const void* col_scores;         // [B, M, N] or null: the same as scores
  const int64_t* region_lengths;  // [B] or null
  const int64_t* phrase_lengths;  // [B] or null
  int64_t B, M, N;
  DType dtype;
  double p;  // NaN: Shapley; otherwise the p-weighted Banzhaf index
};

// F(x) = a x + sum_below (x - x') w(r),  G(x) = b x + sum_below (x - x') v(r), r = 1 .. N - 1.
struct LineLaw {
  double M, N, p, q;
  double in_mean, lone;  // means over t = 0 .. M-1, of term(t) and of term(t) - term(M-1), the latter also over M-1 lines
  double a, b;

  LOUPE_HD static LineLaw start(int64_t M, int64_t N, double p) {
    LineLaw law{};
    law.M = double(M);
    law.N = double(N);
    law.p = p;
    law.q = 1 - p;
    return law;
  }
  LOUPE_HD bool shapley() const { return p != p; }
  LOUPE_HD double term(int64_t t) const { return shapley() ? 1.0 / (N + double(t)) : pow(q, double(t)); }
  // From the sums of term(t) and of term(t) - term(M-1), which would cancel if it were taken from the first.
  LOUPE_HD void finish(double sum, double excess) {
    in_mean = sum / M;
    lone = M > 1 ? excess / (M * (M - 1)) : 0;
    const double empty = shapley() ? 1.0 : pow(q, N - 1);
    a = empty * in_mean;
    b = empty * lone;
  }
  LOUPE_HD static LineLaw of(int64_t M, int64_t N, double p) {
    LineLaw law = start(M, N, p);
    const double last = law.term(M - 1);
    double sum = 0, excess = 0;
    for (int64_t t = 0; t < M; ++t) {
      sum += law.term(t);
      excess += law.term(t) - last;
    }
    law.finish(sum, excess);
    return law;
  }
  LOUPE_HD double w(int64_t r) const {
    return shapley() ? 1.0 / (double(r) * (M + double(r))) : p * pow(q, double(r - 1)) * in_mean;
  }
  LOUPE_HD double v(int64_t r) const {
    if (!shapley()) return p * pow(q, double(r - 1)) * lone;
    return M > 1 ? 1.0 / (double(r) * (M + double(r) - 1) * (M + double(r))) : 0;
  }
};

}  // namespace loupe
