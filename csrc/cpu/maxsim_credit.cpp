// The credit of every entry of every column on the CPU: kLanes columns are sorted together, and one way along them adds up
// the steps' shares (forward) or the gradients of the places above (backward). Compiled once per SIMD target.

#include "maxsim_credit.h"

#include <limits>

#include "sweep.h"

namespace loupe::LOUPE_TARGET {
namespace {

// One thread's scratch, and the work on one problem.
template <class In>
class Credit {
  typedef typename Storage<In>::Compute T;
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Bits;

 public:
  Credit(const PairwiseCall& call, int64_t)
      : call_(call), keys_(sorted_size(call.M)), lanes_((call.M + 1) * kLanes), share_(call.M + 1) {
    share_[0] = 0;  // of no entry
    for (int64_t r = 1; r <= call.M; ++r) share_[r] = credit_share(r, call.p);
  }

  // Of the first M rows and N columns of problem b: the credit or, of a gradient of it, the scores' gradient.
  template <bool backward>
  void work(int64_t b, int64_t M, int64_t N, const In* grad, In* out) {
    const int64_t area = call_.M * call_.N;
    const In* scores = static_cast<const In*>(call_.scores) + b * area;
    if (backward) grad += b * area;
    out += b * area;
    Vec<Bits> wrong{};
    // The last columns first, since whole vectors also write to the next row's first columns.
    for (int64_t j = (N - 1) / kLanes * kLanes; j >= 0 && M > 0; j -= kLanes) {
      Places places(0, N - j, 1, kLanes, M * kLanes);
      for (int64_t k = 0; k < M; ++k) {
        const int64_t from = k * call_.N + j, room = area - from;
        const Vec<T> x = load_wide<T>(scores + from, N - j, room);
        const Vec<Bits> bad = ((Vec<Bits>)x & kExponent) == kExponent;
        wrong |= bad;  // its key would lose its offset
        keys_[k] = Key<T>::make(__builtin_convertvector(bad ? Vec<T>{} : x, Real), places.next());
        if (backward) store(lanes_ + k * kLanes, load_wide<T>(grad + from, N - j, room));
      }
      for (int64_t k = M; k < sorted_size(M); ++k) keys_[k] = Key<T>::last();
      sort_lines(keys_.data, M);
      if (backward) sweep_gradient(M);
      else sweep_credit(M);
      for (int64_t k = 0; k < M; ++k) {
        const int64_t to = k * call_.N + j;
        store_narrow<T>(out + to, load<Vec<T>>(lanes_ + k * kLanes), N - j, area - to);
      }
    }
    bool finite = true;
    for (int l = 0; l < kLanes; ++l) finite &= wrong[l] == 0;
    for (int64_t i = 0; i < M; ++i) {
      if (!finite) std::fill_n(out + i * call_.N, N, Storage<In>::narrow(std::numeric_limits<T>::quiet_NaN()));
      std::fill_n(out + i * call_.N + N, call_.N - N, Storage<In>::narrow(0));
    }
    std::fill_n(out + M * call_.N, area - M * call_.N, Storage<In>::narrow(0));
  }

 private:
  static constexpr Bits kExponent = sizeof(T) == 8 ? Bits(0x7ff0000000000000) : Bits(0x7f800000);

  void sweep_credit(int64_t M) const {
    Real below{}, credit{};
    for (int64_t k = M - 1; k >= 0; --k) {
      const Real x = keys_[k].value();
      credit += (x - below) * share_[k + 1];
      below = x;
      scatter(lanes_.data, keys_[k].offset(), credit);
    }
  }

  void sweep_gradient(int64_t M) const {
    Real above{};
    for (int64_t k = 0; k < M; ++k) {
      const Int at = keys_[k].offset();
      const Real passed = above * share_[k];
      above += gather(lanes_.data, at);
      scatter(lanes_.data, at, above * share_[k + 1] - passed);
    }
  }

  const PairwiseCall& call_;
  Buffer<Key<T>> keys_;
  Buffer<T> lanes_;  // entry k of kLanes columns, side by side
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
