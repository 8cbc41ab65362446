// Exact pair interactions on the CPU: kLanes lines (rows, then columns) of the scores are sorted together, one sweep over
// the sorted keys does a line's arithmetic, and every entry's two numbers are scattered back to its place. Compiled once a
// SIMD target. A problem's sums are taken in the order of its own entries, so the bits depend on the problem alone.

#include "pairwise.h"

#include <limits>

#include "sweep.h"

namespace loupe::LOUPE_TARGET {
namespace {

// The weights of a line's sorted places. The entry at place k has rank k among the others of any entry above it and
// carries w[k]; w_below[k] sums the weights of the places after k.
struct LineTable {
  explicit LineTable(int64_t longest)
      : w(longest + 1), v(longest + 1), w_below(longest + 1), v_below(longest + 1), below(longest + 1) {}

  void prepare(int64_t lines, int64_t entries, double p, double share, const double* atoms) {
    if (lines == M && entries == N) return;
    M = lines;
    N = entries;
    const LineWeights line = LineWeights::of(M, N, p, atoms);
    a = line.a * share;
    b = line.b * share;
    w[0] = v[0] = w_below[N - 1] = v_below[N - 1] = 0;
    for (int64_t k = N - 1; k > 0; --k) {
      w[k] = line.w(k) * share;
      v[k] = line.v(k) * share;
      w_below[k - 1] = w_below[k] + w[k];
      v_below[k - 1] = v_below[k] + v[k];
    }
    for (int64_t k = 0; k < N; ++k) below[k] = {w_below[k] + v_below[k], v_below[k]};
  }

  int64_t M = -1, N = -1;
  double a = 0, b = 0;
  Buffer<double> w, v, w_below, v_below;
  Buffer<Two<double>> below;
};

// f becomes F + G and g becomes G of every entry.
template <class T>
struct ForwardSweep {
  const LineTable& table;
  Two<T>* part;

  LOUPE_INLINE void operator()(const Key<T>* keys, int64_t n, int64_t) const {
    const double a = table.a + table.b, b = table.b;
    const Two<double>* weights_below = table.below.data;
    Real below = keys[n - 1].value(), hinge_f{}, hinge_g{};
    for (int64_t k = n - 1; k >= 0; --k) {
      const Real x = keys[k].value(), drop = x - below;
      below = x;
      hinge_f += drop * weights_below[k].f;
      hinge_g += drop * weights_below[k].g;
      scatter(part, keys[k].offset(), x * a + hinge_f, x * b + hinge_g);
    }
  }
};

// f and g, what reaches F and G of every entry, become the gradient of its score (in f).
template <class T>
struct BackwardSweep {
  const LineTable& table;
  Two<T>* part;

  LOUPE_INLINE void operator()(const Key<T>* keys, int64_t n, int64_t) const {
    const double a = table.a, b = table.b;
    const double *w = table.w.data, *v = table.v.data, *w_below = table.w_below.data, *v_below = table.v_below.data;
    Real f_above{}, g_above{};
    for (int64_t k = 0; k < n; ++k) {
      const Int at = keys[k].offset();
      Real f, g;
      gather(part, at, f, g);
      const Real grad = f * (a + w_below[k]) + g * (b + v_below[k]) - (f_above * w[k] + g_above * v[k]);
      f_above += f;
      g_above += g;
      scatter(part, at, grad, grad);
    }
  }
};

// The sum of g over every column.
template <class T>
void column_totals(const Two<T>* part, int64_t M, int64_t N, T* total) {
  for (int64_t j = 0; j < N; j += kLanes) {
    Pairs<T> sum{};
    for (int64_t i = 0; i < M; ++i) sum += load<Pairs<T>>(part + i * padded(N) + j);
    store(total + j, odd<T>(sum));
  }
}

// The sum of g over one row.
template <class T>
LOUPE_INLINE T row_total(const Two<T>* row, int64_t N) {
  Vec<T> sum{};
  for (int64_t j = 0; j < N; j += kLanes) {
    const Vec<T> g = odd<T>(load<Pairs<T>>(row + j));
    sum += N - j >= kLanes ? g : first_lanes<T>(N - j) ? g : Vec<T>{};
  }
  return lane_sum<T>(sum);
}

// One thread's scratch, and the work on up to `group` problems of equal size at once.
template <class In>
class Pairwise {
  typedef typename Storage<In>::Compute T;

 public:
  Pairwise(const PairwiseCall& call, int64_t group)
      : call_(call), size_(call.M * padded(call.N)), scores_(group * size_), col_scores_(call.col_scores ? group * size_ : 0),
        rows_(group * size_ + kLanes), cols_(group * size_ + kLanes), keys_(sorted_size(std::max(call.M, call.N))),
        total_(padded(call.N)), atoms_(call.M + call.N + 1), row_table_(call.N), col_table_(call.M), finite_(group) {
    for (int64_t k = 0; k <= call.M + call.N; ++k) atoms_[k] = LineWeights::atom(k, call.p);
  }

  void forward(int64_t first, int64_t count, int64_t M, int64_t N, In* out) {
    load_scores(first, count, M, N);
    sweep<ForwardSweep>(count, M, N);
    for (int64_t g = 0; g < count; ++g) {
      In* to = out + (first + g) * call_.M * call_.N;
      const Two<T>* row = rows_ + g * M * padded(N);
      const Two<T>* col = cols_ + g * M * padded(N);
      column_totals<T>(row, M, N, total_);
      for (int64_t i = 0; i < M; ++i, row += padded(N), col += padded(N), to += call_.N) {
        const T along = row_total<T>(col, N);
        for (int64_t j = 0; j < N; j += kLanes) {
          const Vec<T> both = even<T>(load<Pairs<T>>(row + j) + load<Pairs<T>>(col + j));
          const int64_t room = (call_.M - i) * call_.N - j;
          store_narrow<T>(to + j, both - (load<Vec<T>>(total_ + j) + along), N - j, room);
        }
      }
      finish(g, first + g, M, N, out);
    }
  }

  void backward(int64_t first, int64_t count, int64_t M, int64_t N, const In* grad, In* grad_scores, In* grad_cols) {
    load_scores(first, count, M, N);
    for (int64_t g = 0; g < count; ++g) load_grad(grad + (first + g) * call_.M * call_.N, g, M, N);
    sweep<BackwardSweep>(count, M, N);
    for (int64_t g = 0; g < count; ++g) {
      const int64_t at = (first + g) * call_.M * call_.N;
      const Two<T>* row = rows_ + g * M * padded(N);
      const Two<T>* col = cols_ + g * M * padded(N);
      for (int64_t i = 0; i < M; ++i, row += padded(N), col += padded(N))
        for (int64_t j = 0; j < N; j += kLanes) {
          const Pairs<T> x = load<Pairs<T>>(row + j), y = load<Pairs<T>>(col + j);
          const int64_t to = at + i * call_.N + j, room = (call_.M - i) * call_.N - j;
          store_narrow<T>(grad_scores + to, even<T>(grad_cols ? x : x + y), N - j, room);
          if (grad_cols) store_narrow<T>(grad_cols + to, even<T>(y), N - j, room);
        }
      finish(g, first + g, M, N, grad_scores);
      if (grad_cols) finish(g, first + g, M, N, grad_cols);
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

  // f, what reaches F, is the entry's gradient; g, what reaches G, is that minus its total over the lines, each of which
  // subtracts the others' G.
  void load_grad(const In* grad, int64_t g, int64_t M, int64_t N) {
    Two<T>* row = rows_ + g * M * padded(N);
    Two<T>* col = cols_ + g * M * padded(N);
    std::fill_n(total_.data, padded(N), T(0));
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j < N; ++j) total_[j] += Storage<In>::widen(grad[i * call_.N + j]);
    for (int64_t i = 0; i < M; ++i, row += padded(N), col += padded(N), grad += call_.N) {
      T along = 0;
      for (int64_t j = 0; j < N; ++j) along += Storage<In>::widen(grad[j]);
      for (int64_t j = 0; j < N; ++j) {
        const T x = Storage<In>::widen(grad[j]);
        row[j] = {x, x - total_[j]};
        col[j] = {x, x - along};
      }
    }
  }

  template <template <class> class Sweep>
  void sweep(int64_t count, int64_t M, int64_t N) {
    if (M == 0 || N == 0) return;
    const int64_t size = M * padded(N);
    if (call_.has_rows()) {
      row_table_.prepare(M, N, call_.p, call_.share(), atoms_);
      sweep_rows(scores_.data, count * M, N, keys_.data, count * size, Sweep<T>{row_table_, rows_});
    } else {
      std::fill_n(rows_.data, count * size, Two<T>{0, 0});
    }
    col_table_.prepare(call_.columns_of_a_game(N), M, call_.p, call_.share(), atoms_);
    const T* col_scores = call_.col_scores ? col_scores_ : scores_;
    for (int64_t g = 0; g < count; ++g)
      sweep_columns(col_scores + g * size, M, N, 1, padded(N), keys_.data, (count - g) * size,
                    Sweep<T>{col_table_, cols_ + g * size});
  }

  // Zeros around a shorter problem; NaN all over one that holds anything not finite.
  void finish(int64_t g, int64_t b, int64_t M, int64_t N, In* out) {
    out += b * call_.M * call_.N;
    if (!finite_[g])
      for (int64_t i = 0; i < M; ++i) std::fill_n(out + i * call_.N, N, Storage<In>::narrow(std::numeric_limits<T>::quiet_NaN()));
    for (int64_t i = 0; i < M && N < call_.N; ++i) std::fill_n(out + i * call_.N + N, call_.N - N, Storage<In>::narrow(0));
    std::fill_n(out + M * call_.N, (call_.M - M) * call_.N, Storage<In>::narrow(0));
  }

  const PairwiseCall& call_;
  const int64_t size_;
  Buffer<T> scores_, col_scores_;
  Buffer<Two<T>> rows_, cols_;
  Buffer<Key<T>> keys_;
  Buffer<T> total_;
  Buffer<double> atoms_;
  LineTable row_table_, col_table_;
  Buffer<bool> finite_;
};

}  // namespace

void pairwise_forward(const PairwiseCall& call, void* out, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<Pairwise<In>>(call, threads, [&](auto& scratch, int64_t first, int64_t count, int64_t M, int64_t N) {
      scratch.forward(first, count, M, N, static_cast<In*>(out));
    });
  });
}

void pairwise_backward(const PairwiseCall& call, const void* grad, void* grad_scores, void* grad_col_scores, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<Pairwise<In>>(call, threads, [&](auto& scratch, int64_t first, int64_t count, int64_t M, int64_t N) {
      scratch.backward(first, count, M, N, static_cast<const In*>(grad), static_cast<In*>(grad_scores),
                       static_cast<In*>(grad_col_scores));
    });
  });
}

}  // namespace loupe::LOUPE_TARGET
