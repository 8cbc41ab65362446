// The weights of one line (a row, or a column) of the max-mean game's exact pair interactions; host and device.
// python_ref/pairwise.py derives them; M is the number of lines, N the number of entries of each.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace loupe {

// One call of the op. Tensors are dense and contiguous; null means absent.
struct PairwiseCall {
  const void* scores;      // [B, M, N]
  const void* col_scores;  // [B, M, N] or null: the same as scores
  const int64_t* region_lengths;  // [B] or null
  const int64_t* phrase_lengths;  // [B] or null
  int64_t B, M, N;
  DType dtype;
  double p;  // NaN: Shapley; otherwise the p-weighted Banzhaf index
};

// F(x) = a x + sum_below (x - x') w(r),  G(x) = b x + sum_below (x - x') v(r).
struct LineLaw {
  double a, b;
  double M, p, q, in_mean, lone;

  LOUPE_HD static LineLaw of(int64_t M, int64_t N, double p) {
    LineLaw law{};
    law.M = double(M);
    law.p = p;
    law.q = 1 - p;
    const bool shapley = p != p;
    const double last = shapley ? 1.0 / double(M + N - 1) : pow(law.q, double(M - 1));
    double mean = 0, excess = 0;  // excess is summed term by term: the difference of the two means would cancel
    for (int64_t t = 0; t < M; ++t) {
      const double term = shapley ? 1.0 / double(N + t) : pow(law.q, double(t));
      mean += term;
      excess += term - last;
    }
    law.in_mean = mean / law.M;
    law.lone = M > 1 ? excess / (law.M * (law.M - 1)) : 0;
    const double empty = shapley ? 1.0 : pow(law.q, double(N - 1));
    law.a = empty * law.in_mean;
    law.b = empty * law.lone;
    return law;
  }
  LOUPE_HD double w(int64_t r) const {
    return p != p ? 1.0 / (double(r) * (M + double(r))) : p * pow(q, double(r - 1)) * in_mean;
  }
  LOUPE_HD double v(int64_t r) const {
    if (p != p) return M > 1 ? 1.0 / (double(r) * (M + double(r) - 1) * (M + double(r))) : 0;
    return p * pow(q, double(r - 1)) * lone;
  }
};

}  // namespace loupe
