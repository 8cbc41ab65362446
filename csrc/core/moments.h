// Moments of coalitions: M_ij sums the values of the coalitions that hold both i and j, a channel and a group of rows at a
// time. Host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace loupe {

// One call of the op. Tensors are dense and contiguous; null means absent.
struct MomentsCall {
  const uint64_t* coalitions;  // [S, words()]; bits beyond n mean nothing
  const int64_t* offsets;      // [G + 1], or null: one group of all rows
  int64_t C, S, G;
  int n;
  DType dtype;  // of the values [C, S] and the moments [C, G, n, n]

  struct Rows {
    int64_t begin, end;
  };

  LOUPE_INLINE_HD int words() const { return (n + 63) / 64; }

  // Within 0..S whatever the offsets hold: a GPU's cannot be checked without waiting for it.
  LOUPE_INLINE_HD Rows rows(int64_t g) const {
    const int64_t first = offsets ? offsets[g] : 0, last = offsets ? offsets[g + 1] : S;
    const int64_t begin = first < 0 ? 0 : first > S ? S : first;
    return {begin, last < begin ? begin : last > S ? S : last};
  }

  // The group of a row, or -1.
  LOUPE_INLINE_HD int64_t group_of(int64_t k) const {
    if (!offsets) return 0;
    int64_t low = 0, high = G;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (offsets[middle] <= k ? low : high) = middle;
    }
    if (G == 0) return -1;
    const Rows found = rows(low);
    return k >= found.begin && k < found.end ? low : -1;
  }
};

}  // namespace loupe
