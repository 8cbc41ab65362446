// Maxima of the late-interaction game on a GPU: a warp a region, a lane some of its words, up each word's sorted scores.

#include "region_maxima.h"

#include "../core/half.h"
#include "launch.h"

namespace loupe {
namespace {

template <class T>
__global__ void maxima_kernel(MaximaCall call, T* out) {
  const int lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
  const T* slopes = static_cast<const T*>(call.slopes);
  const int64_t all = call.B * call.R;
  for (int64_t first = int64_t(blockIdx.x) * warps; first < all; first += int64_t(gridDim.x) * warps) {
    const int64_t r = first + threadIdx.x / 32, b = r < all ? r / call.R : 0;
    const uint64_t* region = call.regions + (r < all ? r : 0) * call.words();
    const int64_t length = r < all ? call.length(b) : 0;
    int outside = 0;
    for (int i = 0; i < call.n; ++i) outside += !call.has(region, i);
    T total = 0;
    for (int64_t j = lane; j < length; j += 32) {
      const T* u = static_cast<const T*>(call.sorted) + (b * call.N + j) * call.n;
      const int64_t* order = call.order + (b * call.N + j) * call.n;
      T psi = 0, sum = 0, highest = 0, below = 0;
      int rank = outside;  // outside patches from here up
      for (int k = call.n - 1; k >= 0; --k) {
        psi += (u[k] - below) * slopes[rank];
        below = u[k];
        if (call.has(region, order[k])) {
          sum += psi;
          highest = psi;
        } else if (rank > 0) {
          --rank;
        }
      }
      total += highest - sum;
    }
    for (int d = 16; d >= 1; d /= 2) total += __shfl_xor_sync(0xffffffffu, total, d, 32);
    if (lane == 0 && r < all) out[r] = length ? total / T(length) : T(0);
  }
}

}  // namespace

void region_maxima_cuda(const MaximaCall& call, void* out, void* stream) {
  if (call.B * call.R == 0) return;
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    if constexpr (sizeof(T) >= 4) {
      const int threads = 128;
      const int64_t wanted = (call.B * call.R * 32 + threads - 1) / threads, most = int64_t(multiprocessors()) * 32;
      LOUPE_LAUNCH((maxima_kernel<T>), unsigned(wanted < most ? wanted : most), threads, 0, stream, call, static_cast<T*>(out));
    }
  });
}

}  // namespace loupe
