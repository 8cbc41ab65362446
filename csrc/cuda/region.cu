// Walks of the pooled-cosine game on a GPU: a thread a walk, a block some walks of one image under a few of its regions in
// turn. What h of the whole prefix says of each step's player is summed once for all of them; a region takes its own
// members' share off, so that its step costs its size and not n. What threads keep lies `threads` apart: no bank conflicts
// in shared memory, whole lines in scratch, where it is if it is too much. No atomics: the same bits every time.

#include "region.h"

#include <cmath>

#include "../core/half.h"
#include "launch.h"

namespace loupe {
namespace {

constexpr int kRegions = 8;  // of a block: they share its sums over the prefix

template <class T>
__device__ T inverse_root(T x) {
#ifdef __CUDA_ARCH__
  return rsqrt(x);
#else
  return 1 / std::sqrt(x);
#endif
}

template <class T>
__device__ T value(T a, T q, T least) {
  return a * inverse_root(q > least ? q : least);
}

struct Layout {
  int threads;
  bool gram_in_shared, state_in_shared;
  int64_t gram_bytes, list_bytes, state_bytes, chunks, groups;

  template <class T>
  static Layout of(const RegionCall& call) {
    const auto rounded = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
    const int64_t n = call.n, most = max_shared_bytes() - 1024;  // the driver keeps some
    Layout x{};
    x.gram_bytes = rounded(n * n * sizeof(T));
    x.list_bytes = rounded(n * sizeof(T)) + rounded(n * sizeof(int));
    const auto state = [&](int threads) {
      return threads * (2 * rounded(n * sizeof(T)) + rounded(n * sizeof(uint16_t)) + rounded((n + 31) / 32 * 4));
    };
    x.threads = state(64) <= 48 << 10 ? 64 : 32;
    x.state_in_shared = x.list_bytes + state(x.threads) <= (96 << 10 < most ? 96 << 10 : most);
    if (!x.state_in_shared) x.threads = 128;
    x.state_bytes = state(x.threads);
    const int64_t beside = x.list_bytes + (x.state_in_shared ? x.state_bytes : 0);
    x.gram_in_shared = x.gram_bytes <= 48 << 10 && beside + x.gram_bytes <= most;
    x.chunks = (call.K + x.threads - 1) / x.threads;
    x.groups = (call.R + kRegions - 1) / kRegions;
    return x;
  }
  int64_t shared_bytes() const {
    return list_bytes + (state_in_shared ? state_bytes : 0) + (gram_in_shared ? gram_bytes : 0);
  }
  int64_t blocks(int64_t B) const {
    constexpr int64_t kScratch = int64_t(256) << 20;
    int64_t most = int64_t(multiprocessors()) * 32;
    if (!state_in_shared) most = most < kScratch / state_bytes ? most : kScratch / state_bytes;
    most = most < 1 ? 1 : most;
    const int64_t wanted = B * chunks * groups;
    return wanted < most ? wanted : most;
  }
};

template <class T>
__device__ T* take(unsigned char*& memory, int64_t count) {
  T* taken = reinterpret_cast<T*>(memory);
  memory += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
  return taken;
}

template <class T>
__global__ void region_kernel(RegionCall call, Layout layout, T* out, unsigned char* scratch) {
  LOUPE_DYNAMIC_SHARED(shared);
  const int n = call.n, thread = int(threadIdx.x), threads = int(blockDim.x);
  unsigned char* memory = shared;
  T* row_sums = take<T>(memory, n);
  int* members = take<int>(memory, n);
  T* own_gram = layout.gram_in_shared ? take<T>(memory, int64_t(n) * n) : nullptr;
  unsigned char* state = layout.state_in_shared ? memory : scratch + int64_t(blockIdx.x) * layout.state_bytes;
  // Entry i of a thread's arrays is at [i * threads].
  T* prefix_h = take<T>(state, int64_t(n) * threads) + thread;  // of step: sum of G between its player and those before
  T* twice_h = take<T>(state, int64_t(n) * threads) + thread;   // of a member: G_ii + 2 h_i
  uint16_t* player = take<uint16_t>(state, int64_t(n) * threads) + thread;  // of step; n for nobody
  uint32_t* seen = take<uint32_t>(state, int64_t((n + 31) / 32) * threads) + thread;  // a bit a member of R

  for (int64_t item = blockIdx.x; item < call.B * layout.chunks * layout.groups; item += gridDim.x) {
    const int64_t b = item / (layout.chunks * layout.groups), group = item % layout.groups;
    const int64_t walk = item / layout.groups % layout.chunks * threads + thread;
    const T* values = static_cast<const T*>(call.values) + b * n;
    const T* gram = static_cast<const T*>(call.gram) + b * n * n;
    if (own_gram) {
      __syncthreads();  // all are done with the one before
      for (int e = thread; e < n * n; e += threads) own_gram[e] = gram[e];
      __syncthreads();
      gram = own_gram;
    }
    for (int step = 0; step < n; ++step) {
      const int32_t j = walk < call.K ? call.orders[(b * call.K + walk) * n + step] : -1;
      const bool somebody = j >= 0 && j < n;
      player[step * threads] = uint16_t(somebody ? j : n);
      T h = 0;
      for (int before = 0; somebody && before < step; ++before) {
        const int i = player[before * threads];
        if (i < n) h += gram[int64_t(i) * n + j];
      }
      prefix_h[step * threads] = h;
    }
    for (int64_t r = group * kRegions; r < call.R && r < (group + 1) * kRegions; ++r) {
      const uint64_t* region = call.regions + (b * call.R + r) * call.words();
      const int k = call.rank(region, n - 1) + int(call.has(region, n - 1));
      __syncthreads();
      for (int i = thread; i < n; i += threads)
        if (call.has(region, i)) members[call.rank(region, i)] = i;
      __syncthreads();
      for (int i = thread; i < k; i += threads) {
        T sum = 0;
        for (int j = 0; j < k; ++j) sum += gram[int64_t(members[i]) * n + members[j]];
        row_sums[i] = sum;
      }
      __syncthreads();
      T own_a = 0, own_floor = 0, joint_q = 0, A = 0, Q = 0, floor = least_square(T()), total = 0;
      for (int i = 0; i < k; ++i) {
        own_a += values[members[i]];
        joint_q += row_sums[i];
        const T own = gram[int64_t(members[i]) * n + members[i]];
        own_floor += floor_of(own, n);
        twice_h[i * threads] = own;
      }
      for (int w = 0; 32 * w < k; ++w) seen[w * threads] = 0;
      // The empty coalition first, then one a step; of a walk that is worth its end alone, a last round of value only.
      for (int step = -1; step <= n && k >= 2; ++step) {
        const int j = step < 0 || step == n ? n : int(player[step * threads]);
        const bool end = step == n, value_it = call.prefixes ? step < n : end;
        if (j < n && call.has(region, j)) {
          const int i = call.rank(region, j);
          seen[i / 32 * threads] |= uint32_t(1) << (i % 32);
        }
        if (step >= 0 && !end && (j == n || call.has(region, j))) continue;
        const T* row = gram + int64_t(j < n ? j : 0) * n;
        const T two = j < n ? T(2) : T(0);
        if (j < n) {
          T left_out = 0, row_sum = 0;
          uint32_t bits = 0;
          for (int i = 0; i < k; ++i) {
            if (i % 32 == 0) bits = seen[i / 32 * threads];
            const T x = row[members[i]];
            row_sum += x;
            if (bits >> (i % 32) & 1) left_out += x;
          }
          A += values[j];
          floor += floor_of(row[j], n);
          Q += row[j] + 2 * (prefix_h[step * threads] - left_out);
          joint_q += 2 * row_sum;
        }
        const T base = value(A, Q, floor);
        T gain = value(A + own_a, Q + joint_q, floor + own_floor) - base;
        for (int i = 0; i < k; ++i) {
          const T e = twice_h[i * threads] + two * row[members[i]];
          twice_h[i * threads] = e;
          if (!value_it) continue;
          const T own = gram[int64_t(members[i]) * n + members[i]];
          gain -= value(A + values[members[i]], Q + e, floor + floor_of(own, n)) - base;
        }
        if (value_it) total += gain;
      }
      if (walk < call.K) out[(b * call.R + r) * call.K + walk] = call.prefixes ? total / T(n - k + 1) : total;
    }
    __syncthreads();
  }
}

template <class Work>
void for_real(const RegionCall& call, const Work& work) {
  if (call.B * call.R * call.K == 0 || call.n == 0) return;
  for_dtype(call.dtype, [&](auto type) {
    if constexpr (sizeof(type) >= 4) work(type);
  });
}

}  // namespace

int64_t region_scratch_bytes_cuda(const RegionCall& call) {
  int64_t bytes = 0;
  for_real(call, [&](auto type) {
    const Layout layout = Layout::of<decltype(type)>(call);
    if (!layout.state_in_shared) bytes = layout.blocks(call.B) * layout.state_bytes;
  });
  return bytes;
}

void region_walks_cuda(const RegionCall& call, void* out, void* scratch, void* stream) {
  for_real(call, [&](auto type) {
    typedef decltype(type) T;
    const Layout layout = Layout::of<T>(call);
    LOUPE_LAUNCH((region_kernel<T>), unsigned(layout.blocks(call.B)), unsigned(layout.threads), layout.shared_bytes(), stream,
                 call, layout, static_cast<T*>(out), static_cast<unsigned char*>(scratch));
  });
}

}  // namespace loupe
