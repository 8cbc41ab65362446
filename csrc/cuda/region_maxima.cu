// Maxima of the late-interaction game on a GPU: a warp per region, a lane per word, up each word's sorted scores. The regions of
// a block share the scores: they are brought to shared memory a few patches of 32 words at a time.

#include "region_maxima.h"

#include "../core/half.h"
#include "launch.h"

namespace loupe {
namespace {

constexpr int kRegions = 8, kThreads = 32 * kRegions;  // of a block
constexpr int kPatches = 64;                           // in shared memory at a time
constexpr int kStride = 33;                            // from a patch to the next: no bank conflicts along words and patches

template <class T>
__global__ void maxima_kernel(MaximaCall call, T* out) {
  __shared__ T scores[kPatches * kStride];
  __shared__ uint16_t owner[kPatches * kStride];
  const int thread = int(threadIdx.x), lane = thread % 32, n = call.n;
  const T* slopes = static_cast<const T*>(call.slopes);
  const int64_t groups = (call.R + kRegions - 1) / kRegions;
  for (int64_t item = blockIdx.x; item < call.B * groups; item += gridDim.x) {
    const int64_t b = item / groups, r = item % groups * kRegions + thread / 32, length = call.length(b);
    const bool mine = r < call.R;
    const uint64_t* region = call.regions + (b * call.R + (mine ? r : 0)) * call.words();
    int outside = 0;
    for (int i = lane; i < n; i += 32) outside += !call.has(region, i);
    for (int d = 16; d >= 1; d /= 2) outside += __shfl_xor_sync(0xffffffffu, outside, d, 32);
    T total = 0;
    for (int64_t first = 0; first < length; first += 32) {
      T psi = 0, sum = 0, highest = 0, below = 0;
      int rank = outside;  // outside patches from here up
      for (int end = n; end > 0; end -= kPatches) {
        const int begin = end < kPatches ? 0 : end - kPatches, here = end - begin;
        __syncthreads();  // all are done with those before
        for (int e = thread; e < 32 * here; e += kThreads) {
          const int word = e / here, k = e - word * here;
          if (first + word >= length) continue;
          const int64_t at = (b * call.N + first + word) * n + begin + k, who = call.order[at];
          scores[k * kStride + word] = static_cast<const T*>(call.sorted)[at];
          owner[k * kStride + word] = uint16_t(uint64_t(who) < uint64_t(n) ? who : n);
        }
        __syncthreads();
        for (int k = here - 1; k >= 0 && first + lane < length; --k) {
          const T score = scores[k * kStride + lane];
          psi += (score - below) * slopes[rank];
          below = score;
          if (call.has(region, owner[k * kStride + lane])) {
            sum += psi;
            highest = psi;
          } else if (rank > 0) {
            --rank;
          }
        }
      }
      total += highest - sum;
    }
    for (int d = 16; d >= 1; d /= 2) total += __shfl_xor_sync(0xffffffffu, total, d, 32);
    if (lane == 0 && mine) out[b * call.R + r] = length ? total / T(length) : T(0);
  }
}

}  // namespace

void region_maxima_cuda(const MaximaCall& call, void* out, void* stream) {
  if (call.B * call.R == 0) return;
  for_dtype(call.dtype, [&](auto type) {
    typedef decltype(type) T;
    if constexpr (sizeof(T) >= 4) {
      const int64_t wanted = call.B * ((call.R + kRegions - 1) / kRegions), most = int64_t(multiprocessors()) * 32;
      LOUPE_LAUNCH((maxima_kernel<T>), unsigned(wanted < most ? wanted : most), kThreads, 0, stream, call, static_cast<T*>(out));
    }
  });
}

}  // namespace loupe
