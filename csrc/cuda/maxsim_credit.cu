// MaxSim's credit on a GPU: a block per problem, in a tile as in pairwise.cu. Warps sort the columns and put each entry's
// credit, or its gradient, in its place; then the block writes the result once. No atomics: the same bits every time.

#include "maxsim_credit.h"

#include "lines.cuh"

namespace loupe {
namespace {

template <class T>
struct ForwardSweep {
  T* out;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T, T>& columns, int column, int lane, bool real) const {
    const T next = __shfl_down_sync(kWarp, sorted.get(0).x, 1, Line::width);
    T credit = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {  // of this lane's steps; then, on top of the lanes' after it, every entry's
      if (pass == 1) credit = sum_of_lanes_after<Line::width>(credit, lane);
      T below = next;
#pragma unroll
      for (int t = sorted.items - 1; t >= 0; --t) {
        const int k = sorted.rank(lane, t);
        const Key<T> key = sorted.get(t);
        if (k >= columns.n) continue;
        credit += (k == columns.n - 1 ? key.x : key.x - below) * columns.table[padded(k)];
        if (pass == 1 && real) out[columns.at(column, key.at)] = credit;
        below = key.x;
      }
    }
  }
};

// The credit's gradient becomes, in its place, that of the scores.
template <class T>
struct BackwardSweep {
  T* grad;

  template <class Line>
  __device__ void operator()(const Line& sorted, const Lines<T, T>& columns, int column, int lane, bool real) const {
    T above = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) above = sum_of_lanes_before<Line::width>(above, lane);
#pragma unroll
      for (int t = 0; t < sorted.items; ++t) {
        const int k = sorted.rank(lane, t);
        if (!real || k >= columns.n) continue;
        T& here = grad[columns.at(column, sorted.get(t).at)];
        const T g = here;
        if (pass == 1) {
          const T share = columns.table[padded(k)];
          here = g * share - above * (k > 0 ? columns.table[padded(k - 1)] - share : T(0));
        }
        above += g;
      }
    }
  }
};

template <class T, int kMost, bool backward>
__global__ void LOUPE_LINE_BOUNDS(T, kMost)
    credit_kernel(PairwiseCall call, Layout layout, const void* grad, void* out, unsigned char* scratch) {
  LOUPE_DYNAMIC_SHARED(shared);
  unsigned char* memory = shared;
  Key<T>* keys = take<Key<T>>(memory, int64_t(layout.warps) * layout.keys);
  T* shares = take<T>(memory, layout.table);
  __shared__ int finite;
  T* s = reinterpret_cast<T*>(layout.in_shared ? memory : scratch + blockIdx.x * layout.matrix_bytes);
  T* result = backward ? s + layout.entries : s;
  const int threads = blockDim.x, thread = threadIdx.x;
  const int64_t area = call.M * call.N;
  for (int k = thread; k < call.M; k += threads) shares[padded(k)] = T(credit_share(k + 1, call.p));

  for (int64_t b = blockIdx.x; b < call.B; b += gridDim.x) {
    const int64_t rows = call.region_lengths ? call.region_lengths[b] : call.M;
    const int64_t cols = call.phrase_lengths ? call.phrase_lengths[b] : call.N;
    const bool valid = rows >= 0 && rows <= call.M && cols >= 0 && cols <= call.N, any = valid && rows > 0 && cols > 0;
    const int M = any ? int(rows) : 0, N = any ? int(cols) : 0;
    if (thread == 0) finite = 1;
    __syncthreads();
    bool ok = true;
    for (int e = thread; e < M * N; e += threads) {
      const int i = e / N, j = e % N, to = i * layout.stride + j;
      const int64_t from = b * area + i * call.N + j;
      ok = put_finite(load_wide<T>(call.scores, call.dtype, from), s[to]) && ok;
      if (backward) result[to] = load_wide<T>(grad, call.dtype, from);
    }
    if (!ok) finite = 0;
    __syncthreads();
    const Lines<T, T> columns{N, M, 1, layout.stride, s, shares};
    if constexpr (backward) sweep_lines<kMost>(columns, BackwardSweep<T>{result}, keys);
    else sweep_lines<kMost>(columns, ForwardSweep<T>{result}, keys);
    __syncthreads();
    for (int64_t e = thread; e < area; e += threads) {
      const int i = int(e / call.N), j = int(e % call.N);
      const bool inside = i < M && j < N;
      T x = inside ? result[i * layout.stride + j] : T(0);
      if (!valid || (inside && !finite)) x = T(NAN);
      store_narrow(out, call.dtype, b * area + e, x);
    }
    __syncthreads();
  }
}

template <class T>
Layout layout_of(const PairwiseCall& call, bool backward) {
  return Layout::of<T>(call, 1, backward ? 2 : 1, 0, 0, sizeof(T) < sizeof(double) ? kVeryLong : kLong);
}

template <class T, bool backward>
void launch_of(const PairwiseCall& call, const void* grad, void* out, void* scratch, void* stream) {
  const Layout layout = layout_of<T>(call, backward);
  const auto launch = [&](auto kernel) {
    LOUPE_LAUNCH(kernel, unsigned(layout.blocks(call.B)), unsigned(32 * layout.warps), layout.shared_bytes, stream, call,
                 layout, grad, out, static_cast<unsigned char*>(scratch));
  };
  if (layout.most == kShort) return launch(credit_kernel<T, kShort, backward>);
  if constexpr (sizeof(T) < sizeof(double)) {
    if (layout.most == kPage) return launch(credit_kernel<T, kPage, backward>);  // of ColPali's 1,030 patches
    if (layout.most == kVeryLong) return launch(credit_kernel<T, kVeryLong, backward>);
  }
  launch(credit_kernel<T, kLong, backward>);
}

template <bool backward>
void launch(const PairwiseCall& call, const void* grad, void* out, void* scratch, void* stream) {
  if (call.B == 0 || call.M == 0 || call.N == 0) return;
  if (call.dtype == DType::f64) launch_of<double, backward>(call, grad, out, scratch, stream);
  else launch_of<float, backward>(call, grad, out, scratch, stream);
}

}  // namespace

int64_t credit_scratch_bytes_cuda(const PairwiseCall& call, bool backward) {
  if (call.B == 0 || call.M == 0 || call.N == 0) return 0;
  const Layout layout = call.dtype == DType::f64 ? layout_of<double>(call, backward) : layout_of<float>(call, backward);
  return layout.in_shared ? 0 : layout.blocks(call.B) * layout.matrix_bytes;
}

void credit_forward_cuda(const PairwiseCall& call, void* out, void* scratch, void* stream) {
  launch<false>(call, nullptr, out, scratch, stream);
}

void credit_backward_cuda(const PairwiseCall& call, const void* grad, void* grad_scores, void* scratch, void* stream) {
  launch<true>(call, grad, grad_scores, scratch, stream);
}

}  // namespace loupe
