// The credit of a document's tokens for each query token, its column's maximum shared out; python_ref/maxsim_credit.py
// derives it. Documents' tokens are PairwiseCall's rows (regions), the query's its columns (phrases).
#pragma once

#include "pairwise.h"

namespace loupe {

// The share that each of a column's r largest entries has in the step from the r-th down to the next.
LOUPE_INLINE_HD double credit_share(int64_t r, double p) { return LineWeights::atom(LineWeights::shapley(p) ? r : r - 1, p); }

}  // namespace loupe
