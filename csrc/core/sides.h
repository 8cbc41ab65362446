// The weights of one line (a row, or a column) of a game's interactions within one side: values (order 1) and pairs
// (order 2). python_ref/sides.py derives them; g and h are LineLaw's w and v, here up to rank N.
#pragma once

#include "pairwise.h"

namespace loupe {

// c(r) = c(r+1) + v(r) and d(r) = d(r+1) + d_step(r), from sums over t = 0 .. M-2 of positive terms: nothing cancels.
struct LinePairLaw {
  LineLaw law;
  double c_last, d_last;  // c(N), d(N)
  double d_all;           // Banzhaf: d(r) = p q^(r-1) d_all

  LOUPE_INLINE_HD static LinePairLaw start(const LineLaw& law) { return {law, 0, 0, 0}; }
  LOUPE_INLINE_HD int64_t terms() const { return law.M - 1; }
  LOUPE_INLINE_HD double c_term(int64_t t) const {
    if (!law.shapley(law.p)) return double(t + 1) * law.atom(t);
    return double(t + 1) * law.atom(law.N + t) * law.atom(law.N + t + 1);
  }
  LOUPE_INLINE_HD double d_term(int64_t t) const {
    const int64_t M = law.M, y = law.N + t, z = law.N + M - 2;
    if (!law.shapley(law.p)) return double(t + 1) * (law.atom(t) - law.atom(M - 2));
    const double apart = double(t + 1) * double(z - y) * double(z + y + 1);
    return apart * (law.atom(y) * law.atom(y + 1)) * (law.atom(z) * law.atom(z + 1));
  }
  LOUPE_INLINE_HD void finish(double c_sum, double d_sum) {
    const double M = double(law.M), scale = law.shapley(law.p) ? 1 : law.p * law.atom(law.N - 1);
    d_all = law.M > 2 ? 2 * d_sum / (M * (M - 1) * (M - 2)) : 0;
    c_last = law.M > 1 ? scale * c_sum / (M * (M - 1)) : 0;
    d_last = scale * d_all;
  }
  LOUPE_INLINE_HD double c_step(int64_t r) const { return law.v(r); }
  LOUPE_INLINE_HD double d_step(int64_t r) const {
    if (law.M < 3) return 0;
    if (!law.shapley(law.p)) return law.p * law.p * law.atom(r - 1) * d_all;
    return 2 * (law.atom(r) * law.atom(law.M + r - 2)) * (law.atom(law.M + r - 1) * law.atom(law.M + r));
  }
};

}  // namespace loupe
