// Maxima of the late-interaction game on the CPU: a lane a region, a register of regions of one image together, up the
// sorted scores of each word in turn. Compiled once per SIMD target. A lane never sees its neighbours.

#include "region_maxima.h"

#include <memory>

#include "../core/half.h"
#include "buffer.h"
#include "lanes.h"
#include "parallel.h"

namespace loupe::LOUPE_TARGET {
namespace {

template <class T>
class RegionMaxima {
 public:
  static constexpr int L = kLanes * 8 / int(sizeof(T));  // regions in a register
  typedef Vec<T, L> Lanes;
  typedef Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, L> Mask;

  explicit RegionMaxima(const MaximaCall& call) : call_(call), n_(call.n), in_region_(call.n + 1) {}

  // Regions first .. first + L - 1 of image b.
  void run(int64_t b, int64_t first, T* out) {
    const int64_t count = std::min<int64_t>(L, call_.R - first), length = call_.length(b);
    std::fill_n(in_region_.data, n_ + 1, 0u);
    int32_t outside[L] = {};
    for (int64_t r = 0; r < count; ++r) {
      const uint64_t* region = call_.regions + (b * call_.R + first + r) * call_.words();
      for (int64_t i = 0; i < n_; ++i) {
        if (call_.has(region, i)) in_region_[i] |= uint32_t(1) << r;
        else ++outside[r];
      }
    }
    const T* slopes = static_cast<const T*>(call_.slopes);
    const Lanes zero{};
    Mask lane;
    for (int l = 0; l < L; ++l) lane[l] = l;
    Lanes total{};
    for (int64_t j = 0; j < length; ++j) {
      const T* u = static_cast<const T*>(call_.sorted) + (b * call_.N + j) * n_;
      const int64_t* order = call_.order + (b * call_.N + j) * n_;
      Mask rank;  // outside patches from here up
      for (int l = 0; l < L; ++l) rank[l] = outside[l];
      Lanes psi{}, sum{}, highest{};
      T below = 0;
      for (int64_t k = n_ - 1; k >= 0; --k) {
        Lanes slope;
        for (int l = 0; l < L; ++l) slope[l] = slopes[rank[l]];
        psi += (u[k] - below) * slope;
        below = u[k];
        const int32_t bits = int32_t(in_region_[uint64_t(order[k]) < uint64_t(n_) ? order[k] : n_]);
        const Mask inside = (((Mask{} + bits) >> lane) & 1) != 0;
        sum += inside ? psi : zero;
        highest = inside ? psi : highest;
        rank -= ~inside & (rank > 0) & 1;
      }
      total += highest - sum;
    }
    if (length) total /= T(length);
    std::memcpy(out + b * call_.R + first, &total, count * sizeof(T));
  }

 private:
  const MaximaCall& call_;
  const int64_t n_;
  Buffer<uint32_t> in_region_;  // bit r of [i]: player i is in region first + r; of [n]: nobody
};

}  // namespace

void region_maxima(const MaximaCall& call, void* out, int threads) {
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    if constexpr (std::is_floating_point_v<T> && sizeof(T) >= 4) {
      constexpr int L = RegionMaxima<T>::L;
      const int64_t groups = (call.R + L - 1) / L;
      parallel_chunks(call.B * groups, 4, threads, [&] {
        return [&, maxima = std::make_unique<RegionMaxima<T>>(call)](int64_t begin, int64_t end) {
          for (int64_t g = begin; g < end; ++g) maxima->run(g / groups, g % groups * L, static_cast<T*>(out));
        };
      });
    }
  });
}

}  // namespace loupe::LOUPE_TARGET
