// The credit of every entry of every column on the CPU: a register's width of columns is sorted together, and one way along
// them adds up the steps' shares (forward) or the gradients of the places above (backward). Compiled once per SIMD target.
//
// The sort is nearly all of it. Of floats, a key of 32 bits holds the index and the score in steps of about 1e-6 of its
// column's range, so that twice as many columns fit a register as with lanes.h's keys of 64; what a step hides is put right
// by insertion, or by those keys where that would take long.

#include "maxsim_credit.h"

#include <limits>

#include "sweep.h"

namespace loupe::LOUPE_TARGET {
namespace {

typedef Vec<int32_t, 2 * kLanes> Narrow;  // scores of two halves of columns, without a sign, above their indices

struct NarrowKey {
  Narrow bits;
  friend LOUPE_INLINE void order(NarrowKey& a, NarrowKey& b) {
#if defined(__AVX512F__)
    const Narrow high = (Narrow)_mm512_max_epi32((__m512i)a.bits, (__m512i)b.bits);
    b.bits = (Narrow)_mm512_min_epi32((__m512i)a.bits, (__m512i)b.bits);
#else
    const Narrow high = a.bits > b.bits ? a.bits : b.bits;
    b.bits = a.bits > b.bits ? b.bits : a.bits;
#endif
    a.bits = high;
  }
};

LOUPE_INLINE bool any(Narrow mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  const Int halves = (Int)mask;
  return (halves[0] | halves[1]) != 0;
#endif
}

// One thread's scratch, and the work on one problem.
template <class In>
class Credit {
  typedef typename Storage<In>::Compute T;
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Bits;
  static constexpr int kColumns = kLanes * 8 / sizeof(T);  // sorted together
  typedef Vec<T, kColumns> Row;
  static constexpr Bits kExponent = sizeof(T) == 8 ? Bits(0x7ff0000000000000) : Bits(0x7f800000);
  static constexpr int64_t kNarrow = 4096;  // rows whose indices leave a narrow key 19 bits

 public:
  Credit(const PairwiseCall& call, int64_t)
      : call_(call), size_(sorted_size(call.M)), lanes_(size_ * kColumns), sorted_(size_ * kColumns),
        order_(size_ * kColumns), keys_(size_), share_(call.M + 1) {
    share_[0] = 0;  // of no entry
    for (int64_t r = 1; r <= call.M; ++r) share_[r] = credit_share(r, call.p);
  }

  // Of the first M rows and N columns of problem b: the credit or, of a gradient of it, the scores' gradient.
  template <bool backward>
  void work(int64_t b, int64_t M, int64_t N, const In* grad, In* out) {
    const int64_t area = call_.M * call_.N;
    out += b * area;
    bool finite = true;
    std::fill_n(order_ + M * kColumns, (sorted_size(M) - M) * kColumns, -1);  // below every narrow key, and stays there
    for (int64_t j = 0; j < N && M > 0; j += kColumns) {
      const int n = int(std::min<int64_t>(N - j, kColumns));
      finite &= read(static_cast<const In*>(call_.scores) + b * area + j, M, n);
      bool sorted = false;
      if constexpr (sizeof(T) == 4) sorted = M <= kNarrow && sort_narrow(M);
      for (int h = 0; h < kColumns && !sorted; h += kLanes) sort_wide(h, M);
      if (backward) {
        read(grad + b * area + j, M, n, false);
        sweep_gradient(M);
      } else {
        sweep_credit(M);
      }
      write(out + j, M, n);
    }
    for (int64_t i = 0; i < M; ++i) {
      if (!finite) std::fill_n(out + i * call_.N, N, Storage<In>::narrow(std::numeric_limits<T>::quiet_NaN()));
      std::fill_n(out + i * call_.N + N, call_.N - N, Storage<In>::narrow(0));
    }
    std::fill_n(out + M * call_.N, area - M * call_.N, Storage<In>::narrow(0));
  }

 private:
  // n columns into lanes_, and 0 for the rest; says whether all is finite, and of scores takes 0 for what is not.
  bool read(const In* from, int64_t M, int n, bool scores = true) {
    Vec<Bits, kColumns> wrong{};
    for (int64_t k = 0; k < M; ++k, from += call_.N) {
      Row x{};
      if constexpr (std::is_same_v<In, T>)
        if (n == kColumns) x = load<Row>(from);
      if (!std::is_same_v<In, T> || n < kColumns)
        for (int l = 0; l < n; ++l) x[l] = Storage<In>::widen(from[l]);
      const auto bad = ((Vec<Bits, kColumns>)x & kExponent) == kExponent;
      wrong |= bad;
      store(lanes_ + k * kColumns, scores ? (bad ? Row{} : x) : x);
    }
    Bits any = 0;
    for (int l = 0; l < kColumns; ++l) any |= wrong[l];
    return any == 0;
  }

  void write(In* to, int64_t M, int n) const {
    for (int64_t k = 0; k < M; ++k, to += call_.N) {
      const Row x = load<Row>(lanes_ + k * kColumns);
      if constexpr (std::is_same_v<In, T>)
        if (n == kColumns) {
          store(to, x);
          continue;
        }
      for (int l = 0; l < n; ++l) to[l] = Storage<In>::narrow(x[l]);
    }
  }

  // The columns' scores in descending order into sorted_, and the rows that they come from into order_.
  void sort_wide(int h, int64_t M) {
    Int row{};
    for (int64_t k = 0; k < M; ++k, row += 1) keys_[k] = Key<T>::make(load_real(lanes_ + k * kColumns + h), row);
    for (int64_t k = M; k < sorted_size(M); ++k) keys_[k] = Key<T>::last();
    sort_lines(keys_.data, M);
    for (int64_t k = 0; k < M; ++k) {
      store(sorted_ + k * kColumns + h, __builtin_convertvector(keys_[k].value(), Vec<T>));
      store(order_ + k * kColumns + h, __builtin_convertvector(keys_[k].offset(), Vec<int32_t>));
    }
  }

  // The same of all columns by narrow keys; false where they hide too much of the order.
  bool sort_narrow(int64_t M) {
    Row low = load<Row>(lanes_.data), high = low;
    for (int64_t k = 1; k < M; ++k) {
      const Row x = load<Row>(lanes_ + k * kColumns);
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    int bits = 0;
    while ((int64_t(1) << bits) < M) ++bits;
    const int last = (1 << bits) - 1;
    const Row most = Row{} + T((int64_t(1) << (31 - bits)) - 128), scale = most / (high - low);
    NarrowKey* keys = reinterpret_cast<NarrowKey*>(order_.data);
    for (int64_t k = 0; k < M; ++k) {
      const Row x = (load<Row>(lanes_ + k * kColumns) - low) * scale;
      keys[k].bits = __builtin_convertvector(x < most ? x : most, Narrow) << bits | (last - int(k));  // NaN: most
    }
    sort_lines(keys, M);
    Row above = Row{} + std::numeric_limits<T>::infinity();
    int64_t moves = 8 * M;
    for (int64_t k = 0; k < M; ++k) {
      const Narrow row = last - (keys[k].bits & last);
      Row x;
#pragma GCC unroll 16
      for (int l = 0; l < kColumns; ++l) x[l] = lanes_[row[l] * kColumns + l];
      store(order_ + k * kColumns, row);
      store(sorted_ + k * kColumns, x);
      if (any(x > above)) {
        for (int l = 0; l < kColumns; ++l) moves -= insert(l, k);
        if (moves < 0) return false;
        x = load<Row>(sorted_ + k * kColumns);
      }
      above = x;
    }
    return true;
  }

  // Moves the entry at place k of a column up to where it belongs; says by how far.
  int64_t insert(int column, int64_t k) {
    T* xs = sorted_ + column;
    int32_t* rows = order_ + column;
    const T x = xs[k * kColumns];
    const int32_t row = rows[k * kColumns];
    int64_t to = k;
    for (; to > 0 && xs[(to - 1) * kColumns] < x; --to) {
      xs[to * kColumns] = xs[(to - 1) * kColumns];
      rows[to * kColumns] = rows[(to - 1) * kColumns];
    }
    xs[to * kColumns] = x;
    rows[to * kColumns] = row;
    return k - to;
  }

  static constexpr int kHalves = kColumns / kLanes;  // of a row, which is computed in double

  void sweep_credit(int64_t M) {
    Real below[kHalves] = {}, credit[kHalves] = {};
    for (int64_t k = M - 1; k >= 0; --k)
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const Real x = load_real(sorted_ + k * kColumns + h * kLanes);
        credit[h] += (x - below[h]) * share_[k + 1];
        below[h] = x;
        put(k, h, credit[h]);
      }
  }

  void sweep_gradient(int64_t M) {
    Real above[kHalves] = {};
    for (int64_t k = 0; k < M; ++k)
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const int32_t* rows = order_ + k * kColumns + h * kLanes;
        Real g;
#pragma GCC unroll 8
        for (int l = 0; l < kLanes; ++l) g[l] = lanes_[rows[l] * kColumns + h * kLanes + l];
        const Real passed = above[h] * share_[k];
        above[h] += g;
        put(k, h, above[h] * share_[k + 1] - passed);
      }
  }

  // Into lanes_, where the entries at place k come from.
  LOUPE_INLINE void put(int64_t k, int h, Real x) {
    const int32_t* rows = order_ + k * kColumns + h * kLanes;
#pragma GCC unroll 8
    for (int l = 0; l < kLanes; ++l) lanes_[rows[l] * kColumns + h * kLanes + l] = T(x[l]);
  }

  const PairwiseCall& call_;
  const int64_t size_;
  Buffer<T> lanes_, sorted_;  // [M, kColumns]
  Buffer<int32_t> order_;
  Buffer<Key<T>> keys_;
  Buffer<double> share_;
};

template <bool backward>
void run(const PairwiseCall& call, const void* grad, void* out, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) In;
    for_each_group<Credit<In>>(call, threads, [&](auto& credit, int64_t first, int64_t count, int64_t M, int64_t N) {
      for (int64_t b = first; b < first + count; ++b)
        credit.template work<backward>(b, M, N, static_cast<const In*>(grad), static_cast<In*>(out));
    });
  });
}

}  // namespace

void credit_forward(const PairwiseCall& call, void* out, int threads) { run<false>(call, nullptr, out, threads); }

void credit_backward(const PairwiseCall& call, const void* grad, void* grad_scores, int threads) {
  run<true>(call, grad, grad_scores, threads);
}

}  // namespace loupe::LOUPE_TARGET
