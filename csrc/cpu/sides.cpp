// Exact values and same-side pairs on the CPU: a sweep over kLanes sorted lines takes a line's sums and leaves H of every
// entry in its place, the lines' entries side by side; the pairs of entries are then sums of minima over the lines, a
// vector of entries at a time. Backward, each pair's gradient goes to its lower entry, and a second sweep takes it through
// H. Compiled once per SIMD target. A problem's sums are taken in the order of its own entries.

#include "sides.h"

#include <limits>

#include "sweep.h"

namespace loupe::LOUPE_TARGET {
namespace {

// What a sorted line's places carry: `own` in the line's sum, `other` in the sum over all lines; H rises by
// `slope` from a place to the one above it, which is `step` less than at the place before.
struct SideTable {
  explicit SideTable(int64_t longest) : own(longest), other(longest), slope(longest), step(longest) {}

  void prepare(int64_t lines, int64_t entries, const PairwiseCall& call, int order, const double* atoms) {
    if (lines == M && entries == N) return;
    M = lines;
    N = entries;
    const LineWeights line = LineWeights::of(M, N, call.p, atoms);
    LinePairWeights pair = LinePairWeights::start(line);
    if (order == 2) {
      double c = 0, d = 0;
      for (int64_t t = 0; t < pair.terms(); ++t) {
        c += pair.c_term(t);
        d += pair.d_term(t);
      }
      pair.finish(c, d);
    }
    const double share = call.share();
    double c = pair.c_last, d = pair.d_last;
    for (int64_t k = N - 1; k >= 0; --k) {
      const int64_t r = k + 1;
      if (order == 2 && r < N) {
        c += pair.c_step(r);
        d += pair.d_step(r);
      }
      slope[k] = share * line.w(order == 1 ? r : std::max<int64_t>(k, 1));
      own[k] = share * (order == 1 ? line.w(r) + line.v(r) : c + d);
      other[k] = share * (order == 1 ? line.v(r) : d);
      if (r < N) step[r] = slope[k] - slope[r];
    }
    step[0] = 0;
  }

  int64_t M = -1, N = -1;
  Buffer<double> own, other, slope, step;
};

template <class T>
struct ForwardSweep {
  const SideTable& table;
  T* hinge;
  double *own, *other;  // of the lines

  LOUPE_INLINE void operator()(const Key<T>* keys, int64_t n, int64_t line) const {
    const double *owns = table.own, *others = table.other, *slope = table.slope;
    Real below{}, height{}, own_sum{}, other_sum{};
    for (int64_t k = n - 1; k >= 0; --k) {
      const Real x = keys[k].value();
      height += (x - below) * slope[k];
      own_sum += x * owns[k];
      other_sum += x * others[k];
      below = x;
      scatter(hinge, keys[k].offset(), height);
    }
    store(own + line, own_sum);
    store(other + line, other_sum);
  }
};

// What reaches H of every entry, and the sums of its line, becomes the gradient of its score.
template <class T>
struct BackwardSweep {
  const SideTable& table;
  T* part;
  const double *own, *other;

  LOUPE_INLINE void operator()(const Key<T>* keys, int64_t n, int64_t line) const {
    const double *owns = table.own, *others = table.other, *slope = table.slope, *step = table.step;
    const Real own_grad = load<Real>(own + line), other_grad = load<Real>(other + line);
    Real above{};
    for (int64_t k = 0; k < n; ++k) {
      const Int at = keys[k].offset();
      const Real f = gather(part, at);
      scatter(part, at, f * slope[k] - above * step[k] + own_grad * owns[k] + other_grad * others[k]);
      above += f;
    }
  }
};

template <class T>
constexpr int kWide = kLanes * 8 / sizeof(T);  // entries in a register
template <class T>
using Wide = Vec<T, kWide<T>>;

constexpr int64_t kRun = 32;  // terms summed on their own, so that rounding hardly grows with the number of terms

template <class V, class Term>
LOUPE_INLINE V sum_in_runs(int64_t n, const Term& term) {
  V sum{};
  for (int64_t begin = 0; begin < n; begin += kRun) {
    V run{};
    for (int64_t k = begin; k < std::min(n, begin + kRun); ++k) run += term(k);
    sum += run;
  }
  return sum;
}

// result[k] = the sum over the lines of hinge[k], k = 0 .. n.
template <class T>
void sum_lines(const T* hinge, int64_t lines, int64_t n, T* result) {
  for (int64_t k = 0; k < n; k += kWide<T>)
    store(result + k, sum_in_runs<Wide<T>>(lines, [&](int64_t l) { return load<Wide<T>>(hinge + l * padded(n) + k); }));
}

constexpr int64_t kRows = 4;  // of pairs, taken together

// result[q][k] = the sum over the lines of min(hinge[first + q], hinge[k]), q = 0 .. count, k = 0 .. n.
template <int count, class T>
void sum_minima(const T* hinge, int64_t lines, int64_t n, int64_t first, T* result, int64_t stride) {
  for (int64_t k = 0; k < n; k += kWide<T>) {
    Wide<T> sum[count] = {};
    for (int64_t begin = 0; begin < lines; begin += kRun) {
      Wide<T> run[count] = {};
      for (int64_t l = begin; l < std::min(lines, begin + kRun); ++l) {
        const T* line = hinge + l * padded(n);
        const Wide<T> x = load<Wide<T>>(line + k);
#pragma GCC unroll 4
        for (int q = 0; q < count; ++q) {
          const Wide<T> y = Wide<T>{} + line[first + q];
          run[q] += x < y ? x : y;
        }
      }
#pragma GCC unroll 4
      for (int q = 0; q < count; ++q) sum[q] += run[q];
    }
#pragma GCC unroll 4
    for (int q = 0; q < count; ++q) store(result + q * stride + k, sum[q]);
  }
}

// part[i][j] = - the gradients (symmetric [N, N]) of the pairs of row i in which entry j is the lower: the smaller, or of
// equal ones the one of higher index.
template <class T>
void grads_of_lower_in_rows(const T* scores, int64_t M, int64_t N, const T* grads, T* part) {
  const int64_t stride = padded(N);
  Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kWide<T>> lane;
  for (int l = 0; l < kWide<T>; ++l) lane[l] = l;
  for (int64_t i = 0; i < M; ++i, scores += stride, part += stride)
    for (int64_t j = 0; j < N; j += kWide<T>) {
      const Wide<T> x = load<Wide<T>>(scores + j);
      const auto sum = sum_in_runs<Wide<T>>(N, [&](int64_t other) {
        const Wide<T> grad = load<Wide<T>>(grads + other * stride + j), y = Wide<T>{} + scores[other];
        const auto lower = (x < y) | ((x == y) & (lane > int(std::clamp<int64_t>(other - j, -1, kWide<T>))));
        return lower ? grad : Wide<T>{};
      });
      store(part + j, -sum);
    }
}

// The same for columns: grads [M, M], entry i of column j.
template <class T>
void grads_of_lower_in_columns(const T* scores, int64_t M, int64_t N, const T* grads, T* part) {
  const int64_t stride = padded(N);
  for (int64_t i = 0; i < M; ++i, part += stride)
    for (int64_t j = 0; j < N; j += kWide<T>) {
      const Wide<T> x = load<Wide<T>>(scores + i * stride + j);
      const auto sum = sum_in_runs<Wide<T>>(M, [&](int64_t other) {
        const Wide<T> grad = Wide<T>{} + grads[i * padded(M) + other], y = load<Wide<T>>(scores + other * stride + j);
        return (other < i ? x <= y : x < y) ? grad : Wide<T>{};
      });
      store(part + j, -sum);
    }
}

// One thread's scratch, and the work on up to `group` problems of equal size at once. An order's result for a side is a
// matrix of its players: one row of values, or a square of pairs.
template <class In>
class Sides {
  typedef typename Storage<In>::Compute T;

 public:
  // `square_rows`: of pairs, that are held at once.
  Sides(const PairwiseCall& call, int64_t group, int order, int64_t square_rows)
      : call_(call), order_(order), longest_(std::max(call.M, call.N)),
        size_(group * std::max(call.M * padded(call.N), call.N * padded(call.M)) + kWide<T>), scores_(size_),
        col_scores_(call.col_scores ? size_ : 0), rows_(size_), cols_(size_),
        pairs_(square_rows * (padded(longest_) + kWide<T>)), keys_(sorted_size(longest_)),
        row_own_(group * call.M + kLanes), row_other_(group * call.M + kLanes), col_own_(group * call.N + kLanes),
        col_other_(group * call.N + kLanes), atoms_(call.M + call.N + 1), row_table_(call.N), col_table_(call.M),
        finite_(group) {
    for (int64_t k = 0; k <= call.M + call.N; ++k) atoms_[k] = LineWeights::atom(k, call.p);
    for (Buffer<T>* part : {&rows_, &cols_}) std::fill_n(part->data, size_, T(0));  // padding holds numbers
    std::fill_n(row_own_.data, group * call.M + kLanes, 0.0);                      // and MaxSim has no rows
    std::fill_n(row_other_.data, group * call.M + kLanes, 0.0);
  }

  void forward(int64_t first, int64_t count, int64_t M, int64_t N, In* regions, In* phrases) {
    if (M > 0 && N > 0) {
      load_scores(first, count, M, N);
      sweep<ForwardSweep>(count, M, N, padded(M), 1);
    }
    for (int64_t g = 0; g < count; ++g) {
      const int64_t b = first + g, rows = call_.has_rows() ? M : 0;
      const T *row = rows_ + g * M * padded(N), *col = cols_ + g * N * padded(M);
      write(g, b, N > 0 ? M : 0, call_.M, col, N, row_own_ + g * M, row_other_ + g * M, regions);
      write(g, b, M > 0 ? N : 0, call_.N, row, rows, col_own_ + g * N, col_other_ + g * N, phrases);
    }
  }

  void backward(int64_t first, int64_t count, int64_t M, int64_t N, const In* grad_regions, const In* grad_phrases,
                In* grad_scores, In* grad_cols) {
    const int64_t stride = padded(N), size = M * stride;
    if (M > 0 && N > 0) {
      load_scores(first, count, M, N);
      for (int64_t g = 0; g < count; ++g) {
        const T* col_scores = (call_.col_scores ? col_scores_ : scores_) + g * size;
        load_grad(grad_regions, first + g, M, call_.M, row_own_ + g * M, row_other_ + g * M);
        if (order_ == 2) grads_of_lower_in_columns<T>(col_scores, M, N, pairs_, cols_ + g * size);
        for (int64_t i = 0; i < M && order_ == 1; ++i) std::fill_n(cols_ + g * size + i * stride, N, pairs_[i]);
        load_grad(grad_phrases, first + g, N, call_.N, col_own_ + g * N, col_other_ + g * N);
        if (order_ == 2 && call_.has_rows()) grads_of_lower_in_rows<T>(scores_ + g * size, M, N, pairs_, rows_ + g * size);
        for (int64_t i = 0; i < M && order_ == 1; ++i) std::copy_n(pairs_.data, N, rows_ + g * size + i * stride);
      }
      sweep<BackwardSweep>(count, M, N, 1, stride);
    }
    for (int64_t g = 0; g < count; ++g) {
      const int64_t at = (first + g) * call_.M * call_.N;
      const T *row = rows_ + g * size, *col = cols_ + g * size;
      for (int64_t i = 0; i < M; ++i, row += stride, col += stride)
        for (int64_t j = 0; j < N; j += kLanes) {
          const Vec<T> x = call_.has_rows() ? load<Vec<T>>(row + j) : Vec<T>{}, y = load<Vec<T>>(col + j);
          const int64_t to = at + i * call_.N + j, room = (call_.M - i) * call_.N - j;
          store_narrow<T>(grad_scores + to, grad_cols ? x : x + y, N - j, room);
          if (grad_cols) store_narrow<T>(grad_cols + to, y, N - j, room);
        }
      finish(g, M, N, call_.M, call_.N, grad_scores + at);
      if (grad_cols) finish(g, M, N, call_.M, call_.N, grad_cols + at);
    }
  }

 private:
  void load_scores(int64_t first, int64_t count, int64_t M, int64_t N) {
    for (int64_t g = 0; g < count; ++g) {
      const int64_t from = (first + g) * call_.M * call_.N, to = g * M * padded(N);
      finite_[g] = load_matrix(static_cast<const In*>(call_.scores) + from, call_.M, call_.N, M, N, scores_ + to);
      if (call_.col_scores)
        finite_[g] &= load_matrix(static_cast<const In*>(call_.col_scores) + from, call_.M, call_.N, M, N, col_scores_ + to);
      if (finite_[g]) continue;
      std::fill_n(scores_ + to, M * padded(N), T(0));  // its keys would lose their offsets; `finish` writes its result
      if (call_.col_scores) std::fill_n(col_scores_ + to, M * padded(N), T(0));
    }
  }

  // A column's entries: `column_step` between columns, `entry_step` within one.
  template <template <class> class Sweep>
  void sweep(int64_t count, int64_t M, int64_t N, int64_t column_step, int64_t entry_step) {
    if (call_.has_rows()) {
      row_table_.prepare(M, N, call_, order_, atoms_);
      sweep_rows(scores_.data, count * M, N, keys_.data, count * M * padded(N),
                 Sweep<T>{row_table_, rows_, row_own_, row_other_});
    }
    col_table_.prepare(call_.columns_of_a_game(N), M, call_, order_, atoms_);
    const T* col_scores = call_.col_scores ? col_scores_ : scores_;
    const int64_t part = column_step == 1 ? M * padded(N) : N * padded(M);
    for (int64_t g = 0; g < count; ++g)
      sweep_columns(col_scores + g * M * padded(N), M, N, column_step, entry_step, keys_.data, (count - g) * part,
                    Sweep<T>{col_table_, cols_ + g * part, col_own_ + g * N, col_other_ + g * N});
  }

  // The result for a side of n players, from H of its players as entries of the other side's lines and from their own lines.
  void write(int64_t g, int64_t b, int64_t n, int64_t ld, const T* hinge, int64_t lines, const double* own,
             const double* other, In* out) {
    const int64_t rows = order_ == 1 ? 1 : ld;
    out += b * rows * ld;
    double total = 0;
    for (int64_t k = 0; k < n; ++k) total += other[k];
    if (order_ == 1) {
      sum_lines(hinge, lines, n, pairs_.data);
      for (int64_t k = 0; k < n; k += kLanes) {
        const Real x = load<Real>(own + k) - total + load_real(pairs_ + k);
        store_narrow<T>(out + k, __builtin_convertvector(x, Vec<T>), n - k, ld - k);
      }
    }
    const int64_t stride = padded(n) + kWide<T>;
    for (int64_t first = 0; first < n && order_ == 2; first += kRows) {
      if (n - first >= kRows) sum_minima<kRows>(hinge, lines, n, first, pairs_.data, stride);
      else
        for (int64_t q = first; q < n; ++q) sum_minima<1>(hinge, lines, n, q, pairs_ + (q - first) * stride, stride);
      for (int64_t q = first; q < std::min(n, first + kRows); ++q) {
        for (int64_t k = 0; k < n; k += kLanes) {
          const Real x = total - (load<Real>(own + k) + own[q]) - load_real(pairs_ + (q - first) * stride + k);
          store_narrow<T>(out + q * ld + k, __builtin_convertvector(x, Vec<T>), n - k, (ld - q) * ld - k);
        }
        out[q * ld + q] = Storage<In>::narrow(0);
      }
    }
    finish(g, order_ == 1 ? std::min<int64_t>(n, 1) : n, n, rows, ld, out);
  }

  // What reaches the players of a side: as entries (in pairs_), as lines, and through what all lines share.
  void load_grad(const In* grad, int64_t b, int64_t n, int64_t ld, double* own, double* other) {
    double sum = 0;
    if (order_ == 1) {
      for (int64_t k = 0; k < n; ++k) sum += own[k] = pairs_[k] = Storage<In>::widen(grad[b * ld + k]);
    } else {
      grad += b * ld * ld;
      for (int64_t q = 0; q < n; ++q) {
        own[q] = 0;
        for (int64_t k = 0; k < n; ++k) {
          const T both = Storage<In>::widen(grad[q * ld + k]) + Storage<In>::widen(grad[k * ld + q]);
          pairs_[q * padded(n) + k] = q == k ? 0 : both;
          own[q] -= pairs_[q * padded(n) + k];
        }
        sum += own[q] / 2;
      }
    }
    std::fill_n(other, n, -sum);
  }

  // Zeros around a shorter problem; NaN all over one that holds anything not finite.
  void finish(int64_t g, int64_t M, int64_t N, int64_t rows, int64_t ld, In* out) {
    if (M > 0 && N > 0 && !finite_[g])
      for (int64_t i = 0; i < M; ++i) std::fill_n(out + i * ld, N, Storage<In>::narrow(std::numeric_limits<T>::quiet_NaN()));
    for (int64_t i = 0; i < M && N < ld; ++i) std::fill_n(out + i * ld + N, ld - N, Storage<In>::narrow(0));
    std::fill_n(out + M * ld, (rows - M) * ld, Storage<In>::narrow(0));
  }

  const PairwiseCall& call_;
  const int order_;
  const int64_t longest_, size_;
  Buffer<T> scores_, col_scores_, rows_, cols_, pairs_;
  Buffer<Key<T>> keys_;
  Buffer<double> row_own_, row_other_, col_own_, col_other_, atoms_;
  SideTable row_table_, col_table_;
  Buffer<bool> finite_;
};

}  // namespace

void sides_forward(const PairwiseCall& call, int order, void* regions, void* phrases, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<Sides<In>>(
        call, threads,
        [&](auto& scratch, int64_t first, int64_t count, int64_t M, int64_t N) {
          scratch.forward(first, count, M, N, static_cast<In*>(regions), static_cast<In*>(phrases));
        },
        order, kRows);
  });
}

void sides_backward(const PairwiseCall& call, int order, const void* grad_regions, const void* grad_phrases,
                    void* grad_scores, void* grad_col_scores, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<Sides<In>>(
        call, threads,
        [&](auto& scratch, int64_t first, int64_t count, int64_t M, int64_t N) {
          scratch.backward(first, count, M, N, static_cast<const In*>(grad_regions), static_cast<const In*>(grad_phrases),
                           static_cast<In*>(grad_scores), static_cast<In*>(grad_col_scores));
        },
        order, order == 2 ? std::max(call.M, call.N) : 1);
  });
}

}  // namespace loupe::LOUPE_TARGET
