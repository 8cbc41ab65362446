// Walks of the pooled-cosine game on a GPU: a thread per walk, a block for some walks of one image under a few of its regions in
// turn. What h of the whole prefix says of each step's player is summed once for all of them; a region takes its own
// members' share off, so that its step costs its size and not n. A region's columns of the Gram matrix lie together in
// shared memory, a player's row of them by fours: rows are an odd number of fours apart, since lanes read rows at random.
// What a walk knows of a member is in registers, as far as these go. No atomics: the same bits every time.

#include "region.h"

#include <cmath>

#include "../core/half.h"
#include "launch.h"

namespace loupe {
namespace {

constexpr int kThreads = 128;  // of a block, at most
constexpr int kRegions = 16;   // of a block, at most: they share its sums over the prefix

template <class T>
struct alignas(16) Four {
  T of[4];
};

template <class T>
constexpr int kHeld = 256 / sizeof(T);  // members in registers, at most

// a / sqrt(q), with q at least `least`; NaN where one of them is.
LOUPE_INLINE_HD float value(float a, float q, float least) {
  float from = q < least ? least : q;
#ifdef __CUDA_ARCH__
  float root;
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(from) : "f"(q), "f"(least));
#endif
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(from));  // normal, as `least` is
  return a * root;
#else
  return a / std::sqrt(from);
#endif
}
LOUPE_INLINE_HD double value(double a, double q, double least) {
  const double from = q < least ? least : q;
#ifdef __CUDA_ARCH__
  return a * rsqrt(from);
#else
  return a / std::sqrt(from);
#endif
}

LOUPE_INLINE_HD int64_t rounded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

template <class T>
struct Layout {
  int threads, held, stride;  // members in registers, and a row's distance in their columns
  int64_t per_block;          // regions
  bool gram_in_shared, state_in_shared;
  int64_t shared_bytes, state_bytes, chunks, groups, blocks;

  static Layout of(const RegionCall& call) {
    const int64_t n = call.n, most = max_shared_bytes() - 1024;  // the driver keeps some
    Layout x{};
    x.threads = call.K <= 32 ? 32 : call.K <= 64 ? 64 : kThreads;
    const int64_t lists = 2 * rounded(n * 2, 16) + 4 * rounded(n * sizeof(T), 4 * sizeof(T));
    for (x.held = int(n < kHeld<T> ? rounded(n, 4) : kHeld<T>);; x.held -= 4) {
      x.stride = x.held + 16 / int(sizeof(T)) * int(x.held * sizeof(T) / 16 % 2 == 0);
      if (x.held == 0 || lists + n * x.stride * int64_t(sizeof(T)) <= most) break;
    }
    const auto state = [&](int64_t count) {
      const int64_t beyond = count > x.held ? count - x.held : 0;
      return x.threads * (count * int64_t(sizeof(T) + 2) + beyond * int64_t(sizeof(T)) + rounded(beyond, 32) / 8);
    };
    x.state_bytes = rounded(state(n), 16);
    x.shared_bytes = lists + rounded(n * x.stride * sizeof(T), 16);
    x.state_in_shared = x.state_bytes <= 40 << 10 && x.shared_bytes + x.state_bytes <= most;
    if (x.state_in_shared) x.shared_bytes += x.state_bytes;
    const int64_t gram = rounded(n * n * sizeof(T), 16);
    x.gram_in_shared = gram <= 48 << 10 && x.shared_bytes + gram <= most;
    if (x.gram_in_shared) x.shared_bytes += gram;
    x.chunks = (call.K + x.threads - 1) / x.threads;
    for (x.per_block = kRegions;; x.per_block /= 2) {
      x.groups = (call.R + x.per_block - 1) / x.per_block;
      if (x.per_block == 1 || call.B * x.chunks * x.groups >= int64_t(multiprocessors()) * 4) break;
    }
    constexpr int64_t kScratch = int64_t(256) << 20;
    int64_t at_once = int64_t(multiprocessors()) * 16;
    if (!x.state_in_shared) at_once = at_once < kScratch / x.state_bytes ? at_once : kScratch / x.state_bytes;
    at_once = at_once < 1 ? 1 : at_once;
    x.blocks = call.B * x.chunks * x.groups;
    x.blocks = x.blocks < at_once ? x.blocks : at_once;
    return x;
  }
};

template <class T>
__device__ T* take(unsigned char*& memory, int64_t count) {
  T* taken = reinterpret_cast<T*>(memory);
  memory += rounded(count * int64_t(sizeof(T)), 16);
  return taken;
}

// What a block's threads know of a region R.
template <class T>
struct Members {
  int16_t* place;   // of a player: its number in R; -1: it is not in R
  uint16_t* player;  // of a member
  T *sums;           // of a player: of its row, over R
  T *values, *floors, *own;  // of a member: a_i, its floor, G_ii; zero beyond the last
  T* columns;                // row j, `stride` after the one before: G_ji for the first members i, zero beyond the last
  int count, held;           // `held` of them are in registers: the first ones

  __device__ void read(const RegionCall& call, const Layout<T>& layout, int64_t b, int64_t r, const T* gram) {
    const int n = call.n, thread = int(threadIdx.x), threads = int(blockDim.x);
    const uint64_t* region = call.regions + (b * call.R + r) * call.words();
    count = call.rank(region, n - 1) + int(call.has(region, n - 1));
    held = count < layout.held ? count : layout.held;
    __syncthreads();  // all are done with the region before
    for (int i = thread; i < n; i += threads) {
      const int rank = call.rank(region, i);
      place[i] = int16_t(call.has(region, i) ? rank : -1);
      if (call.has(region, i)) player[rank] = uint16_t(i);
    }
    __syncthreads();
    const T* a = static_cast<const T*>(call.values) + b * n;
    for (int i = thread; i < rounded(count, 4); i += threads) {
      const int j = i < count ? player[i] : 0;
      own[i] = i < count ? gram[int64_t(j) * n + j] : T(0);
      values[i] = i < count ? a[j] : T(0);
      floors[i] = i < count ? floor_of(own[i], n) : T(0);
    }
    for (int j = thread; j < n; j += threads) {
      T sum = 0;
      for (int i = 0; i < count; ++i) sum += gram[int64_t(j) * n + player[i]];
      sums[j] = sum;
    }
    const int width = int(rounded(held, 4));
    for (int e = thread; e < n * width; e += threads) {
      const int j = e / width, i = e - j * width;
      columns[j * layout.stride + i] = i < held ? gram[int64_t(j) * n + player[i]] : T(0);
    }
    __syncthreads();
  }
};

// What a thread knows of its walk; entry i of an array is at [i * threads].
template <class T>
struct Walk {
  T* h;              // of a step: sum of G between its player and those before
  T* beyond;         // of a member beyond those in registers: what `Visit::twice_h` is of the others
  uint16_t* player;  // of a step; n for nobody
  uint32_t* seen;    // one bit per member beyond those in registers
  int threads;

  __device__ void read(const RegionCall& call, int64_t b, int64_t walk, const T* gram) {
    const int n = call.n;
    for (int step = 0; step < n; ++step) {
      const int32_t j = walk < call.K ? call.orders[(b * call.K + walk) * n + step] : -1;
      const bool somebody = j >= 0 && j < n;
      player[step * threads] = uint16_t(somebody ? j : n);
      T sum = 0;
      for (int before = 0; somebody && before < step; ++before) {
        const int i = player[before * threads];
        if (i < n) sum += gram[int64_t(i) * n + j];
      }
      h[step * threads] = sum;
    }
  }
};

// The interaction of R by one walk.
template <class T>
__device__ T visit(const RegionCall& call, const Layout<T>& layout, const Members<T>& region, const Walk<T>& walk,
                   const T* a, const T* gram) {
  constexpr int S = kHeld<T>;
  const int n = call.n, threads = walk.threads, held = region.held, count = region.count;
  T twice_h[S], x[S];  // of a member: G_ii + 2 h_i, and its entry in the row of who joins
  uint64_t seen = 0;  // one bit per member in registers
  T A = 0, Q = 0, floor = least_square(T()), own_a = 0, joint_q = 0, own_floor = 0, total = 0;
#pragma unroll
  for (int i = 0; i < S; ++i) twice_h[i] = i < held ? region.own[i] : T(0);
  for (int i = held; i < count; ++i) walk.beyond[(i - held) * threads] = region.own[i];
  for (int i = held; i < count; i += 32) walk.seen[(i - held) / 32 * threads] = 0;
  for (int i = 0; i < count; ++i) {
    own_a += region.values[i];
    own_floor += region.floors[i];
    joint_q += region.sums[region.player[i]];
  }
  int step = 0;
  for (int j = n;;) {  // nobody: the empty coalition
    const T* row = region.columns + int64_t(j < n ? j : 0) * layout.stride;
    const T* rest = gram + int64_t(j < n ? j : 0) * n;
    T inside = 0;  // of the row, over the members that came before
#pragma unroll
    for (int g = 0; g < S / 4; ++g)
      if (4 * g < held) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(row + 4 * g);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          x[4 * g + q] = four.of[q];
          if (seen >> (4 * g + q) & 1) inside += four.of[q];
        }
      }
    for (int i = held; i < count; ++i)
      if (walk.seen[(i - held) / 32 * threads] >> (i - held) % 32 & 1) inside += rest[region.player[i]];
    if (j < n) {
      A += a[j];
      floor += floor_of(rest[j], n);
      Q += rest[j] + 2 * (walk.h[(step - 1) * threads] - inside);
      joint_q += 2 * region.sums[j];
    }
    int next = n;
    while (step < n && next == n) {
      const int joins = walk.player[step++ * threads];
      if (joins == n) continue;
      const int i = region.place[joins];
      if (i < 0) next = joins;
      else if (i < held) seen |= uint64_t(1) << i;
      else walk.seen[(i - held) / 32 * threads] |= 1u << (i - held) % 32;
    }
    const bool value_it = call.prefixes || next == n;
    const T two = j < n ? T(2) : T(0), base = value(A, Q, floor);
    T gain = value(A + own_a, Q + joint_q, floor + own_floor) - base;
#pragma unroll
    for (int g = 0; g < S / 4; ++g)
      if (4 * g < held) {
        const Four<T> values = *reinterpret_cast<const Four<T>*>(region.values + 4 * g);
        const Four<T> floors = *reinterpret_cast<const Four<T>*>(region.floors + 4 * g);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          T& e = twice_h[4 * g + q];
          e += two * x[4 * g + q];
          if (value_it) gain -= value(A + values.of[q], Q + e, floor + floors.of[q]) - base;
        }
      }
    for (int i = held; i < count; ++i) {
      const T e = walk.beyond[(i - held) * threads] + two * rest[region.player[i]];
      walk.beyond[(i - held) * threads] = e;
      if (value_it) gain -= value(A + region.values[i], Q + e, floor + region.floors[i]) - base;
    }
    if (value_it) total += gain;
    if (next == n) break;
    j = next;
  }
  return call.prefixes ? total / T(n - count + 1) : total;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) region_kernel(RegionCall call, Layout<T> layout, T* out, unsigned char* scratch) {
  LOUPE_DYNAMIC_SHARED(shared);
  const int n = call.n, thread = int(threadIdx.x), threads = int(blockDim.x);
  unsigned char* memory = shared;
  Members<T> region{};
  region.columns = take<T>(memory, int64_t(n) * layout.stride);
  region.values = take<T>(memory, rounded(n, 4));
  region.floors = take<T>(memory, rounded(n, 4));
  region.own = take<T>(memory, rounded(n, 4));
  region.sums = take<T>(memory, rounded(n, 4));
  region.place = take<int16_t>(memory, n);
  region.player = take<uint16_t>(memory, n);
  T* own_gram = layout.gram_in_shared ? take<T>(memory, int64_t(n) * n) : nullptr;
  unsigned char* state = layout.state_in_shared ? memory : scratch + int64_t(blockIdx.x) * layout.state_bytes;
  const int64_t beyond = n > layout.held ? n - layout.held : 0;
  Walk<T> walk{};
  walk.threads = threads;
  walk.h = take<T>(state, int64_t(n) * threads) + thread;
  walk.beyond = take<T>(state, beyond * threads) + thread;
  walk.seen = take<uint32_t>(state, (beyond + 31) / 32 * threads) + thread;
  walk.player = take<uint16_t>(state, int64_t(n) * threads) + thread;

  for (int64_t item = blockIdx.x; item < call.B * layout.chunks * layout.groups; item += gridDim.x) {
    const int64_t b = item / (layout.chunks * layout.groups), group = item % layout.groups;
    const int64_t k = item / layout.groups % layout.chunks * threads + thread;
    const T* a = static_cast<const T*>(call.values) + b * n;
    const T* gram = static_cast<const T*>(call.gram) + b * n * n;
    if (own_gram) {
      __syncthreads();  // all are done with the one before
      for (int e = thread; e < n * n; e += threads) own_gram[e] = gram[e];
      __syncthreads();
      gram = own_gram;
    }
    walk.read(call, b, k, gram);
    const int64_t first = group * layout.per_block, last = first + layout.per_block;
    for (int64_t r = first; r < call.R && r < last; ++r) {
      region.read(call, layout, b, r, gram);
      const T found = region.count < 2 ? T(0) : visit(call, layout, region, walk, a, gram);
      if (k < call.K) out[(b * call.R + r) * call.K + k] = found;
    }
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
    const auto layout = Layout<decltype(type)>::of(call);
    if (!layout.state_in_shared) bytes = layout.blocks * layout.state_bytes;
  });
  return bytes;
}

void region_walks_cuda(const RegionCall& call, void* out, void* scratch, void* stream) {
  for_real(call, [&](auto type) {
    typedef decltype(type) T;
    const auto layout = Layout<T>::of(call);
    LOUPE_LAUNCH((region_kernel<T>), unsigned(layout.blocks), unsigned(layout.threads), layout.shared_bytes, stream, call,
                 layout, static_cast<T*>(out), static_cast<unsigned char*>(scratch));
  });
}

}  // namespace loupe
