// The weights of one line (a row, or a column) of a game's interactions within one side: values (order 1) and pairs
// (order 2). python_ref/sides.py derives them; g and h are LineWeights's w and v, here up to rank N.
#pragma once

#include "pairwise.h"

namespace loupe {

// c(r) = c(r+1) + v(r) and d(r) = d(r+1) + d_step(r), from sums over t = 0 .. M-2 of positive terms: nothing cancels.
struct LinePairWeights {
  LineWeights line;
  double c_last, d_last;  // c(N), d(N)
  double d_all;           // Banzhaf: d(r) = p q^(r-1) d_all

  LOUPE_INLINE_HD static LinePairWeights start(const LineWeights& line) { return {line, 0, 0, 0}; }
  LOUPE_INLINE_HD int64_t terms() const { return line.M - 1; }
  LOUPE_INLINE_HD double c_term(int64_t t) const {
    if (!line.shapley(line.p)) return double(t + 1) * line.atom(t);
    return double(t + 1) * line.atom(line.N + t) * line.atom(line.N + t + 1);
  }
  LOUPE_INLINE_HD double d_term(int64_t t) const {
    const int64_t M = line.M, y = line.N + t, z = line.N + M - 2;
    if (!line.shapley(line.p)) return double(t + 1) * (line.atom(t) - line.atom(M - 2));
    const double apart = double(t + 1) * double(z - y) * double(z + y + 1);
    return apart * (line.atom(y) * line.atom(y + 1)) * (line.atom(z) * line.atom(z + 1));
  }
  LOUPE_INLINE_HD void finish(double c_sum, double d_sum) {
    const double M = double(line.M), scale = line.shapley(line.p) ? 1 : line.p * line.atom(line.N - 1);
    d_all = line.M > 2 ? 2 * d_sum / (M * (M - 1) * (M - 2)) : 0;
    c_last = line.M > 1 ? scale * c_sum / (M * (M - 1)) : 0;
    d_last = scale * d_all;
  }
  LOUPE_INLINE_HD double c_step(int64_t r) const { return line.v(r); }
  LOUPE_INLINE_HD double d_step(int64_t r) const {
    if (line.M < 3) return 0;
    if (!line.shapley(line.p)) return line.p * line.p * line.atom(r - 1) * d_all;
    return 2 * (line.atom(r) * line.atom(line.M + r - 2)) * (line.atom(line.M + r - 1) * line.atom(line.M + r));
  }
};

}  // namespace loupe
