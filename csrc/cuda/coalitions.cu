// Random coalitions and permutations on a GPU: a thread draws a sample, or both of an antithetic pair. What it draws lies in
// shared memory, its parts `threads` apart so that a warp's accesses meet no bank twice; then the block writes it out
// together. A coalition takes as many draws as it has members, or players that it lacks: the threads of a block share
// them out by that number, so that the lanes of a warp end at about the same time.

#include "coalitions.h"

#include "launch.h"

namespace loupe {
namespace {

constexpr int kSorted = 96;  // players from which on sorting the draws of a block pays

// What a thread draws, by number: samples k .. k + count - 1 of problem b. Of a pair both, unless the call has one alone.
struct Units {
  bool pairs;
  int64_t each, all;  // per problem, and of the call

  static Units of(const SampleCall& call, bool pairs) {
    Units x{pairs, call.samples, 0};
    if (pairs) x.each = (call.first_sample + call.samples - 1) / 2 - call.first_sample / 2 + 1;
    x.all = call.problems * x.each;
    return x;
  }
  unsigned blocks(int threads) const {
    const int64_t wanted = (all + threads - 1) / threads, most = int64_t(multiprocessors()) * 32;
    return unsigned(wanted < most ? wanted : most);
  }
};

struct Unit {
  int64_t b, k;
  int count;
  bool second;  // it begins with the second of a pair

  __device__ Unit(const SampleCall& call, const Units& units, int64_t number)
      : b(units.each == units.all ? 0 : number / units.each), k(number - b * units.each), count(1), second(false) {
    if (!units.pairs) return;
    k = 2 * (k + call.first_sample / 2) - call.first_sample;
    second = k < 0;
    count = second || k + 1 == call.samples ? 1 : 2;
    if (second) k = 0;
  }
  __device__ int64_t sample(const SampleCall& call) const { return b * call.samples + k; }
};

// The shared memory of a block.
template <class Value>
int64_t shared_bytes(int threads, int size) {
  return threads * (size * int64_t(sizeof(Value)) + 3 * int64_t(sizeof(int)));
}

// `size` values per unit, which `draw(unit, to)` leaves at to[e * threads]; `turn(from, e)` is value e of the sample turned
// over. `work(unit)` is the number of draws of a unit, if they differ enough to share them out by it.
template <class Value, class Out, class Work, class Draw, class Turn>
__device__ void draw_and_write(const SampleCall& call, const Units& units, int size, bool sort, Out* out, const Work& work,
                               const Draw& draw, const Turn& turn) {
  LOUPE_DYNAMIC_SHARED(shared);
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  uint32_t* mine = reinterpret_cast<uint32_t*>(shared);  // of a thread: the unit that it draws
  int* from = reinterpret_cast<int*>(mine) + threads;    // of a unit: the thread that drew it
  int* place = from + threads;                           // of a unit: its first sample, from the block's first
  Value* memory = reinterpret_cast<Value*>(place + threads);
  for (int64_t first = int64_t(blockIdx.x) * threads; first < units.all; first += int64_t(gridDim.x) * threads) {
    const int here = int(units.all - first < threads ? units.all - first : threads);
    const int64_t begin = Unit(call, units, first).sample(call);
    const Unit own(call, units, first + (thread < here ? thread : 0));
    int rank = thread;
    if (sort) {
      const uint32_t key = (thread < here ? work(own) : uint32_t(call.players)) * threads + thread;
      mine[thread] = key;
      __syncthreads();
      rank = 0;
      for (int t = 0; t < threads; ++t) rank += mine[t] < key;
      __syncthreads();
    }
    mine[rank] = uint32_t(thread);
    from[thread] = rank;
    place[thread] = int(own.sample(call) - begin) * 4 + own.second * 2 + (own.count == 2);
    __syncthreads();
    if (int(mine[thread]) < here) draw(Unit(call, units, first + mine[thread]), memory + thread);
    __syncthreads();
    for (uint32_t e = thread; e < uint32_t(here * size); e += threads) {
      const uint32_t u = e / uint32_t(size), part = e - u * uint32_t(size);
      const Value* drawn = memory + from[u];
      const bool second = place[u] & 2, both = place[u] & 1;
      Out* to = out + (begin + place[u] / 4) * size + part;
      if (!second) *to = Out(drawn[part * threads]);
      if (second || both) to[both ? size : 0] = Out(turn(drawn, int(part)));
    }
    __syncthreads();
  }
}

// A coalition in words of 32 bits, `step` apart.
struct Halves {
  uint32_t* words;
  int step;

  __device__ uint32_t& half(uint32_t w) const { return words[w * uint32_t(step)]; }
  __device__ void put(int w, uint64_t bits) const {
    half(2 * w) = uint32_t(bits);
    half(2 * w + 1) = uint32_t(bits >> 32);
  }
  __device__ void flip(int w, uint64_t bits) const {
    half(2 * w) ^= uint32_t(bits);
    half(2 * w + 1) ^= uint32_t(bits >> 32);
  }
  __device__ bool has(uint32_t i) const { return half(i / 32) >> (i % 32) & 1; }
  __device__ void add(uint32_t i) const { half(i / 32) |= 1u << (i % 32); }
};

__global__ void coalitions_kernel(SampleCall call, Units units, uint32_t* out) {
  const int threads = int(blockDim.x);
  draw_and_write<uint32_t>(
      call, units, 2 * call.words(), call.threshold == 0 && call.players >= kSorted, out,
      [&](const Unit& unit) {
        const SamplePlace place(call, unit.b, unit.k);
        Draws<1> draws(call.seed, place.problem, place.counter);
        const uint32_t members = draw_size(call, place.problem, place.counter, draws), others = call.players - members;
        return members < others ? members : others;
      },
      [&](const Unit& unit, uint32_t* words) {
        Halves set{words, threads};
        draw_coalition<1>(call, unit.b, unit.k - unit.second, set);
      },
      [&](const uint32_t* words, int w) {
        return words[w * threads] ^ uint32_t(everyone(call.players, w / 2) >> (w % 2 * 32));
      });
}

__global__ void permutations_kernel(SampleCall call, Units units, int32_t* out) {
  const int threads = int(blockDim.x), n = call.players;
  draw_and_write<uint16_t>(
      call, units, n, false, out, [](const Unit&) { return 0u; },
      [&](const Unit& unit, uint16_t* order) {
        draw_permutation<1>(call, unit.b, unit.k - unit.second, order, threads);
      },
      [&](const uint16_t* order, int j) { return order[(n - 1 - j) * threads]; });
}

}  // namespace

void sample_coalitions_cuda(const SampleCall& call, uint64_t* out, void* stream) {
  if (call.problems * call.samples * call.words() == 0) return;
  const int threads = 128;
  const Units units = Units::of(call, call.turns_over());
  LOUPE_LAUNCH(coalitions_kernel, units.blocks(threads), threads, shared_bytes<uint32_t>(threads, 2 * call.words()), stream,
               call, units, reinterpret_cast<uint32_t*>(out));
}

void sample_permutations_cuda(const SampleCall& call, int32_t* out, void* stream) {
  if (call.problems * call.samples * call.players == 0) return;
  const int threads = call.players <= 128 ? 128 : call.players <= 512 ? 64 : 32;
  const Units units = Units::of(call, call.antithetic);
  LOUPE_LAUNCH(permutations_kernel, units.blocks(threads), threads, shared_bytes<uint16_t>(threads, call.players), stream, call,
               units, out);
}

}  // namespace loupe
