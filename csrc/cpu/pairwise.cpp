// Exact pair interactions on the CPU: kLanes lines (rows, then columns) of the scores are sorted together, one sweep over
// the sorted keys does a line's arithmetic, and every entry's two numbers are scattered back to its place. Compiled once a
// SIMD target. A lane never sees its neighbours and a problem's sums are taken in the order of its own entries, so the
// bits depend on the problem alone.

#include "pairwise.h"

#include <limits>
#include <memory>

#include "../core/half.h"
#include "buffer.h"
#include "lanes.h"
#include "parallel.h"

namespace loupe::LOUPE_TARGET {
namespace {

// The weights of a line's sorted places. The entry at place k has rank k among the others of any entry above it and
// carries w[k]; w_below[k] sums the weights of the places after k.
struct LineTable {
  explicit LineTable(int64_t longest)
      : w(longest + 1), v(longest + 1), w_below(longest + 1), v_below(longest + 1), below(longest + 1) {}

  void prepare(int64_t lines, int64_t entries, double p, const double* atoms) {
    if (lines == M && entries == N) return;
    M = lines;
    N = entries;
    const LineLaw law = LineLaw::of(M, N, p, atoms);
    a = law.a / 2;  // the game is half of each part
    b = law.b / 2;
    w[0] = v[0] = w_below[N - 1] = v_below[N - 1] = 0;
    for (int64_t k = N - 1; k > 0; --k) {
      w[k] = law.w(k) / 2;
      v[k] = law.v(k) / 2;
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
struct ForwardSweep {
  template <class T>
  static LOUPE_INLINE void run(const Key<T>* keys, int64_t n, const LineTable& table, Two<T>* part) {
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
struct BackwardSweep {
  template <class T>
  static LOUPE_INLINE void run(const Key<T>* keys, int64_t n, const LineTable& table, Two<T>* part) {
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

// A problem's rows are read and written by whole vectors wherever `room`, the entries left in the problem, allows: lanes
// beyond the row's n are cleared when read, and written again by the next row when written.
template <class T, class In>
LOUPE_INLINE Vec<T> load_wide(const In* from, int64_t n, int64_t room) {
  Vec<T> x{};
  if constexpr (std::is_same_v<In, T>) {
    if (room >= kLanes) x = load<Vec<T>>(from);
    else std::memcpy(&x, from, n * sizeof(T));
  } else {
    for (int l = 0; l < (room >= kLanes ? kLanes : n); ++l) x[l] = Storage<In>::widen(from[l]);
  }
  return n >= kLanes ? x : first_lanes<T>(n) ? x : Vec<T>{};
}

template <class T, class In>
LOUPE_INLINE void store_narrow(In* to, Vec<T> x, int64_t n, int64_t room) {
  if constexpr (std::is_same_v<In, T>) {
    if (room >= kLanes) store(to, x);
    else std::memcpy(to, &x, std::min<int64_t>(n, kLanes) * sizeof(T));
  } else {
    for (int l = 0; l < (room >= kLanes ? kLanes : std::min<int64_t>(n, kLanes)); ++l) to[l] = Storage<In>::narrow(x[l]);
  }
}

// Copies the first M rows and N columns of [rows, ld] into rows padded with 0 (lanes without a column must order like any
// other); says whether all of it is finite.
template <class In, class T>
bool load_matrix(const In* from, int64_t rows, int64_t ld, int64_t M, int64_t N, T* to) {
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Bits;
  constexpr Bits exponent = sizeof(T) == 8 ? Bits(0x7ff0000000000000) : Bits(0x7f800000);
  Vec<Bits> wrong{};
  for (int64_t i = 0; i < M; ++i, from += ld, to += padded(N))
    for (int64_t j = 0; j < N; j += kLanes) {
      const Vec<T> x = load_wide<T>(from + j, N - j, (rows - i) * ld - j);
      wrong |= ((Vec<Bits>)x & exponent) == exponent;
      store(to + j, x);
    }
  Bits any = 0;
  for (int l = 0; l < kLanes; ++l) any |= wrong[l];
  return any == 0;
}

// Where a lane's entries live: entry k at first + k * step; all entries of a lane without a line at `spare`.
struct Places {
  LOUPE_INLINE Places(int64_t line, int64_t lines, int64_t line_step, int64_t entry_step, int64_t spare) {
    Int lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    const Int active = lane < lines - line;
    at = active ? (lane + line) * line_step : Int{} + spare;
    step = active ? Int{} + entry_step : Int{};
  }
  LOUPE_INLINE Int next() {
    const Int here = at;
    at += step;
    return here;
  }
  Int at, step;
};

template <class Sweep, class T>
LOUPE_INLINE void sort_and_sweep(Key<T>* keys, int64_t n, const LineTable& table, Two<T>* part) {
  for (int64_t k = n; k < sorted_size(n); ++k) keys[k] = Key<T>::last();
  sort_lines(keys, n);
  Sweep::run(keys, n, table, part);
}

// Sorts kLanes rows at a time of [rows, n] and sweeps them; entry k of row i is part[i * padded(n) + k].
template <class Sweep, class T>
void sweep_rows(const T* scores, int64_t rows, int64_t n, const LineTable& table, Key<T>* keys, Two<T>* part,
                int64_t spare) {
  const int64_t stride = padded(n);
  for (int64_t i = 0; i < rows; i += kLanes) {
    Places places(i, rows, stride, 1, spare);
    for (int64_t k = 0; k < n; k += kLanes) {
      Vec<T> square[kLanes];
#pragma GCC unroll 8
      for (int l = 0; l < kLanes; ++l) square[l] = load<Vec<T>>(scores + std::min(i + l, rows - 1) * stride + k);
      transpose<1, T>(square, kLaneSequence);
#pragma GCC unroll 8
      for (int l = 0; l < kLanes; ++l)
        if (k + l < n) keys[k + l] = Key<T>::make(__builtin_convertvector(square[l], Real), places.next());
    }
    sort_and_sweep<Sweep>(keys, n, table, part);
  }
}

// The same for the columns of [n, columns]; entry k of column j is part[k * padded(columns) + j].
template <class Sweep, class T>
void sweep_columns(const T* scores, int64_t n, int64_t columns, const LineTable& table, Key<T>* keys, Two<T>* part,
                   int64_t spare) {
  const int64_t stride = padded(columns);
  for (int64_t j = 0; j < columns; j += kLanes) {
    Places places(j, columns, 1, stride, spare);
    for (int64_t k = 0; k < n; ++k) keys[k] = Key<T>::make(load_real(scores + k * stride + j), places.next());
    sort_and_sweep<Sweep>(keys, n, table, part);
  }
}

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
    for (int64_t k = 0; k <= call.M + call.N; ++k) atoms_[k] = LineLaw::atom(k, call.p);
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

  template <class Sweep>
  void sweep(int64_t count, int64_t M, int64_t N) {
    if (M == 0 || N == 0) return;
    row_table_.prepare(M, N, call_.p, atoms_);
    col_table_.prepare(N, M, call_.p, atoms_);
    const int64_t size = M * padded(N);
    sweep_rows<Sweep, T>(scores_, count * M, N, row_table_, keys_, rows_, count * size);
    const T* col_scores = call_.col_scores ? col_scores_ : scores_;
    for (int64_t g = 0; g < count; ++g)
      sweep_columns<Sweep, T>(col_scores + g * size, M, N, col_table_, keys_, cols_ + g * size, (count - g) * size);
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

// Calls work(scratch, first, count, M, N) for runs of equal problems.
template <class In, class Work>
void for_each_group(const PairwiseCall& call, int threads, const Work& work) {
  constexpr int64_t kGroup = 1024;  // entries whose scratch stays in the first-level cache
  constexpr int64_t kChunk = 8192;  // entries that pay for a thread
  const int64_t area = std::max<int64_t>(call.M * call.N, 1);
  const int64_t group = std::max<int64_t>(kGroup / area, 1), chunk = std::max<int64_t>(kChunk / area, 1);
  const auto rows = [&](int64_t b) { return call.region_lengths ? call.region_lengths[b] : call.M; };
  const auto cols = [&](int64_t b) { return call.phrase_lengths ? call.phrase_lengths[b] : call.N; };
  parallel_chunks(call.B, chunk, threads, [&] {
    return [&, scratch = std::make_unique<Pairwise<In>>(call, std::min(group, call.B))](int64_t begin, int64_t end) {
      while (begin < end) {
        int64_t count = 1;
        while (count < group && begin + count < end && rows(begin + count) == rows(begin) &&
               cols(begin + count) == cols(begin))
          ++count;
        work(*scratch, begin, count, rows(begin), cols(begin));
        begin += count;
      }
    };
  });
}

}  // namespace

void pairwise_forward(const PairwiseCall& call, void* out, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<In>(call, threads, [&](auto& scratch, int64_t first, int64_t count, int64_t M, int64_t N) {
      scratch.forward(first, count, M, N, static_cast<In*>(out));
    });
  });
}

void pairwise_backward(const PairwiseCall& call, const void* grad, void* grad_scores, void* grad_col_scores, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<In>(call, threads, [&](auto& scratch, int64_t first, int64_t count, int64_t M, int64_t N) {
      scratch.backward(first, count, M, N, static_cast<const In*>(grad), static_cast<In*>(grad_scores),
                       static_cast<In*>(grad_col_scores));
    });
  });
}

}  // namespace loupe::LOUPE_TARGET
