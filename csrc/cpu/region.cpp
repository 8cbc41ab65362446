// Walks of the pooled-cosine game on the CPU: a lane a walk, a register of walks of one image together. Every region of
// the image walks them: a step's row of G is brought into lanes once, and h of the whole prefix is kept once; a region
// takes its own members' share off, so that a step costs its size, not n. Compiled once per SIMD target. A lane never
// sees its neighbours.

#include "region.h"

#include <cmath>
#include <memory>

#include "../core/half.h"
#include "buffer.h"
#include "lanes.h"
#include "parallel.h"

namespace loupe::LOUPE_TARGET {
namespace {

template <class T>
constexpr int kWalks = kLanes * 8 / int(sizeof(T));  // a register of them
template <class T>
using Walks = Vec<T, kWalks<T>>;
template <class T>
using Bits = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, kWalks<T>>;

LOUPE_INLINE Walks<double> inverse_root(Walks<double> x) {
  for (int l = 0; l < kWalks<double>; ++l) x[l] = 1 / std::sqrt(x[l]);
  return x;
}
LOUPE_INLINE Walks<float> inverse_root(Walks<float> x) {
#if defined(__AVX512F__)
  const Walks<float> y = (Walks<float>)_mm512_rsqrt14_ps((__m512)x);
#elif defined(__AVX2__)
  const Walks<float> y = (Walks<float>)_mm256_rsqrt_ps((__m256)x);
#else
  for (int l = 0; l < kWalks<float>; ++l) x[l] = 1 / std::sqrt(x[l]);
  return x;
#endif
#if defined(__AVX2__)
  return y * (1.5f - 0.5f * (x * y) * y);  // Newton's step: from 12 bits or 14 to all of them, give or take one
#endif
}
template <class W>
LOUPE_INLINE W at_least(W x, W least) {
  return x < least ? least : x;  // NaN stays NaN
}

template <class T>
class RegionWalks {
 public:
  static constexpr int L = kWalks<T>;

  explicit RegionWalks(const RegionCall& call)
      : call_(call), n_(call.n), ld_(padded(call.n)), blocks_((call.R + 31) / 32), gram_((n_ + 1) * ld_), values_(n_ + 1),
        diagonal_(n_ + 1), floor_(n_ + 1), member_(call.R * n_), first_(call.R + 1), in_region_(blocks_ * (n_ + 1)), own_a_(call.R),
        own_q_(call.R), own_floor_(call.R), row_(ld_ * L), h_((n_ + 1) * L), seen_((n_ + 1) * L), twice_h_(call.R * n_ * L),
        state_(call.R) {}

  // Walks first .. first + L - 1 of image b, under every region; `last` is the number of walks.
  void run(int64_t b, int64_t first, T* out) {
    if (b != image_) load_image(b);
    start();
    const int32_t* orders = call_.orders + (b * call_.K + first) * n_;
    const int64_t walks = std::min<int64_t>(L, call_.K - first);
    for (int64_t step = 0; step < n_; ++step) {
      alignas(64) int32_t player[L];
      for (int l = 0; l < L; ++l) {
        const int32_t j = l < walks ? orders[l * n_ + step] : -1;
        player[l] = j >= 0 && j < n_ ? j : int32_t(n_);  // n stands for nobody
      }
      if (call_.prefixes) advance<true>(player);
      else advance<false>(player);
    }
    for (int64_t r = 0; r < call_.R; ++r) {
      const int64_t k = size(r);
      Walks<T> result{};
      if (k >= 2) result = call_.prefixes ? state_[r].total / T(n_ - k + 1) : gain(r);
      std::memcpy(out + (b * call_.R + r) * call_.K + first, &result, walks * sizeof(T));
    }
  }

 private:
  struct State {
    Walks<T> A, Q, floor, joint_q, total;  // joint_q = Q_R + 2 sum of h over R: what R adds to Q by joining
  };

  int64_t size(int64_t r) const { return first_[r + 1] - first_[r]; }

  void load_image(int64_t b) {
    image_ = b;
    const T* gram = static_cast<const T*>(call_.gram) + b * n_ * n_;
    for (int64_t i = 0; i < n_; ++i) {
      std::memcpy(gram_ + i * ld_, gram + i * n_, n_ * sizeof(T));
      std::fill_n(gram_ + i * ld_ + n_, ld_ - n_, T(0));
      diagonal_[i] = gram[i * n_ + i];
      floor_[i] = floor_of(diagonal_[i], call_.n);
    }
    std::memcpy(values_, static_cast<const T*>(call_.values) + b * n_, n_ * sizeof(T));
    std::fill_n(gram_ + n_ * ld_, ld_, T(0));
    values_[n_] = diagonal_[n_] = floor_[n_] = 0;
    std::fill_n(in_region_.data, blocks_ * (n_ + 1), 0u);
    first_[0] = 0;
    for (int64_t r = 0; r < call_.R; ++r) {
      const uint64_t* region = call_.regions + (b * call_.R + r) * call_.words();
      int32_t* members = member_ + first_[r];
      int64_t k = 0;
      for (int i = 0; i < n_; ++i)
        if (call_.has(region, i)) members[k++] = i;
      first_[r + 1] = first_[r] + k;
      uint32_t* bits = in_region_ + r / 32 * (n_ + 1);
      bits[n_] |= uint32_t(1) << r % 32;  // nobody joins nowhere
      own_a_[r] = own_q_[r] = own_floor_[r] = 0;
      for (int64_t i = 0; i < k; ++i) {
        bits[members[i]] |= uint32_t(1) << r % 32;
        own_a_[r] += values_[members[i]];
        own_floor_[r] += floor_[members[i]];
        for (int64_t j = 0; j < k; ++j) own_q_[r] += gram_[members[i] * ld_ + members[j]];
      }
    }
  }

  void start() {
    std::fill_n(h_.data, (n_ + 1) * L, T(0));
    std::fill_n(seen_.data, (n_ + 1) * L, T(0));
    for (int64_t r = 0; r < call_.R; ++r) {
      Walks<T>* twice_h = reinterpret_cast<Walks<T>*>(twice_h_ + first_[r] * L);
      for (int64_t i = 0; i < size(r); ++i) twice_h[i] = Walks<T>{} + diagonal_[member_[first_[r] + i]];
      state_[r] = {Walks<T>{}, Walks<T>{}, Walks<T>{} + least_square(T()), Walks<T>{} + own_q_[r], Walks<T>{}};
      if (call_.prefixes) state_[r].total = gain(r);
    }
  }

  // Rows of G, each lane's player's, turned into lanes: entry i of them is row_[i * L ..].
  LOUPE_INLINE void load_rows(const int32_t* player) {
    for (int64_t i = 0; i < ld_; i += kLanes)
      for (int half = 0; half < L; half += kLanes) {
        Vec<T> square[kLanes];
#pragma GCC unroll 8
        for (int l = 0; l < kLanes; ++l) square[l] = load<Vec<T>>(gram_ + player[half + l] * ld_ + i);
        transpose<1, T>(square, kLaneSequence);
#pragma GCC unroll 8
        for (int l = 0; l < kLanes; ++l) store(row_ + (i + l) * L + half, square[l]);
      }
  }

  template <bool value_it>
  void advance(const int32_t* player) {
    load_rows(player);
    Walks<T> own{}, floor{}, value{}, h{};
    for (int l = 0; l < L; ++l) {
      own[l] = diagonal_[player[l]];
      floor[l] = floor_[player[l]];
      value[l] = values_[player[l]];
      h[l] = h_[player[l] * L + l];
    }
    for (int64_t first = 0; first < call_.R; first += 32) {
      const uint32_t* bits = in_region_ + first / 32 * (n_ + 1);
      Bits<T> inside{};
      for (int l = 0; l < L; ++l) inside[l] = bits[player[l]];
      for (int64_t r = first; r < std::min(first + 32, call_.R); ++r) {
        if (size(r) >= 2) join<value_it>(r, (inside >> int(r - first) & 1) == 0, own, floor, value, h);
      }
    }
    for (int64_t i = 0; i < n_ * L; i += L) store(h_ + i, load<Walks<T>>(h_ + i) + load<Walks<T>>(row_ + i));
    for (int l = 0; l < L; ++l) seen_[player[l] * L + l] = 1;
  }

  // Lanes whose player is outside region r take it in.
  template <bool value_it>
  LOUPE_INLINE void join(int64_t r, Bits<T> outside, Walks<T> own, Walks<T> floor, Walks<T> value,
                         Walks<T> h) {
    const int32_t* members = member_ + first_[r];
    const int64_t k = size(r);
    Walks<T> left_out{}, row_sum{};  // of h: what members of R, which this region's T is without, contributed
    for (int64_t i = 0; i < k; ++i) {
      const Walks<T> x = load<Walks<T>>(row_ + members[i] * L);
      left_out += load<Walks<T>>(seen_ + members[i] * L) * x;
      row_sum += x;
    }
    const Walks<T> zero{}, two = outside ? zero + 2 : zero;
    State& s = state_[r];
    s.A += outside ? value : zero;
    s.Q += outside ? own + 2 * (h - left_out) : zero;
    s.floor += outside ? floor : zero;
    s.joint_q += two * row_sum;
    T* twice_h = twice_h_ + first_[r] * L;
    const Walks<T> base = value_it ? s.A * inverse_root(at_least(s.Q, s.floor)) : zero;
    Walks<T> gain = value_it ? joint(r) - base : zero;
    for (int64_t i = 0; i < k; ++i) {
      const Walks<T> e = load<Walks<T>>(twice_h + i * L) + two * load<Walks<T>>(row_ + members[i] * L);
      store(twice_h + i * L, e);
      if (value_it) gain -= with_member(s, members[i], e) - base;
    }
    if (value_it) s.total += outside ? gain : zero;
  }

  LOUPE_INLINE Walks<T> joint(int64_t r) const {  // v(T + R)
    const State& s = state_[r];
    return (s.A + own_a_[r]) * inverse_root(at_least(s.Q + s.joint_q, s.floor + own_floor_[r]));
  }

  LOUPE_INLINE Walks<T> with_member(const State& s, int32_t i, Walks<T> twice_h) const {  // v(T + i)
    return (s.A + values_[i]) * inverse_root(at_least(s.Q + twice_h, s.floor + floor_[i]));
  }

  // v(T + R) - v(T) - sum of v(T + i) - v(T) over R, small differences first: v(T + i) summed up would cancel in the end.
  Walks<T> gain(int64_t r) const {
    const State& s = state_[r];
    const Walks<T> base = s.A * inverse_root(at_least(s.Q, s.floor));
    Walks<T> gain = joint(r) - base;
    for (int64_t i = first_[r]; i < first_[r + 1]; ++i)
      gain -= with_member(s, member_[i], load<Walks<T>>(twice_h_ + i * L)) - base;
    return gain;
  }

  const RegionCall& call_;
  const int64_t n_, ld_, blocks_;
  int64_t image_ = -1;
  Buffer<T> gram_, values_, diagonal_, floor_;  // with a row of zeros for nobody
  Buffer<int32_t> member_;              // region r's: first_[r] to first_[r + 1]
  Buffer<int64_t> first_;
  Buffer<uint32_t> in_region_;  // bit r % 32 of [r / 32][i]: player i joins no coalition of region r
  Buffer<T> own_a_, own_q_, own_floor_;
  Buffer<T> row_, h_, seen_;  // a lane a walk; seen_ is 1 for who is in the prefix
  Buffer<T> twice_h_;         // G_ii + 2 h_i of the members: what each adds to Q by joining
  Buffer<State> state_;
};

}  // namespace

void region_walks(const RegionCall& call, void* out, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    if constexpr (std::is_floating_point_v<T> && sizeof(T) >= 4) {
      const int64_t groups = (call.K + kWalks<T> - 1) / kWalks<T>;
      parallel_chunks(call.B * groups, 4, threads, [&] {
        return [&, walks = std::make_unique<RegionWalks<T>>(call)](int64_t begin, int64_t end) {
          for (int64_t g = begin; g < end; ++g)
            walks->run(g / groups, g % groups * kWalks<T>, static_cast<T*>(out));
        };
      });
    }
  });
}

}  // namespace loupe::LOUPE_TARGET
