// CUDA C++ on a CPU, as far as this project's kernels use it: every thread of a block is a fiber, blocks run one after
// another. A fiber runs until it meets a barrier or a shuffle; when all threads that must meet have come, they go on. A
// meeting that can never be complete (a barrier in a divergent branch, a shuffle from a lane that left) ends the program
// with the place of every waiting thread. EMULATED_ORDER=reversed runs the threads of a block the other way round: results
// that differ betray a missing barrier. Built with AddressSanitizer, which then watches shared and global memory.
// EMULATED_BANKS=file counts there what accesses to shared memory by `touch` cost: the n-th of each lane since the block last
// met are one access of their warp, which takes a cycle for every different word in the bank that has most of them.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

namespace emulated {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

enum class Meeting { none, block, warp, shuffle_xor, shuffle_down, shuffle_up, shuffle_from, multiply, done };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  void* fake_stack = nullptr;
  unsigned thread = 0;
  Meeting at = Meeting::none;
  int line = 0, argument = 0, width = 32;
  unsigned char value[8], result[8];
  float* d = nullptr;  // of a tensor core's product: what it adds to, and the lane's parts of its factors
  const uint32_t *a = nullptr, *b = nullptr;
  std::vector<std::pair<int, int>> touched;  // first word and words
};

struct Machine {
  ucontext_t context;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  Index block, block_size, grid_size;
  std::function<void()> kernel;
  unsigned char* shared = nullptr;
  const char* counts = std::getenv("EMULATED_BANKS");
  int64_t accesses = 0, cycles = 0;

  ~Machine() {
    std::FILE* file = counts ? std::fopen(counts, "w") : nullptr;
    if (!file) return;
    std::fprintf(file, "%lld %lld\n", (long long)accesses, (long long)cycles);
    std::fclose(file);
  }
};
inline Machine machine;

inline unsigned char* touch(unsigned char* at, size_t bytes) {
  if (machine.counts) machine.running->touched.emplace_back(int(at - machine.shared) / 4, int(bytes) / 4);
  return at;
}

inline void count_banks() {
  for (size_t first = 0; first < machine.fibers.size(); first += 32) {
    size_t most = 0;
    for (size_t l = first; l < first + 32; ++l) most = std::max(most, machine.fibers[l].touched.size());
    for (size_t n = 0; n < most; ++n) {
      std::set<int> banks[32];
      size_t cycles = 0;
      for (size_t l = first; l < first + 32; ++l)
        if (n < machine.fibers[l].touched.size())
          for (int word = 0; word < machine.fibers[l].touched[n].second; ++word) {
            std::set<int>& bank = banks[(machine.fibers[l].touched[n].first + word) % 32];
            bank.insert(machine.fibers[l].touched[n].first + word);
            cycles = std::max(cycles, bank.size());
          }
      ++machine.accesses;
      machine.cycles += int64_t(cycles);
    }
    for (size_t l = first; l < first + 32; ++l) machine.fibers[l].touched.clear();
  }
}

inline void start_switch(void** save, const void* bottom, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}
inline void finish_switch(void* saved, const void** bottom, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}

inline void leave(Fiber& fiber, bool for_good) {
  start_switch(for_good ? nullptr : &fiber.fake_stack, machine.stack_bottom, machine.stack_size);
  swapcontext(&fiber.context, &machine.context);
  finish_switch(fiber.fake_stack, &machine.stack_bottom, &machine.stack_size);
}

inline void fiber_main() {
  finish_switch(nullptr, &machine.stack_bottom, &machine.stack_size);
  machine.kernel();
  machine.running->at = Meeting::done;
  leave(*machine.running, true);
}

inline void enter(Fiber& fiber) {
  machine.running = &fiber;
  start_switch(&machine.fake_stack, fiber.stack.data(), fiber.stack.size());
  swapcontext(&machine.context, &fiber.context);
  finish_switch(machine.fake_stack, nullptr, nullptr);
}

inline void meet(Meeting at, int line) {
  Fiber& me = *machine.running;
  me.at = at;
  me.line = line;
  leave(me, false);
}

template <class T>
T shuffle(Meeting kind, unsigned mask, T value, int argument, int width, int line) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  if (mask != 0xffffffffu) throw std::runtime_error("the emulator has full-warp shuffles only");
  Fiber& me = *machine.running;
  std::memcpy(me.value, &value, sizeof value);
  me.argument = argument;
  me.width = width;
  meet(kind, line);
  std::memcpy(&value, me.result, sizeof value);
  return value;
}

// d [16, 8] += a [16, 16] b [16, 8] of bfloat16, a warp's lanes having the parts that mma.m16n8k16 gives them.
inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  Fiber& me = *machine.running;
  me.d = d;
  me.a = a;
  me.b = b;
  meet(Meeting::multiply, line);
}

inline void multiply_add(const Fiber* lane) {
  const auto number = [](uint32_t two, int which) {
    const uint32_t bits = which ? two & 0xffff0000u : two << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return double(x);
  };
  double a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l)
    for (int at = 0; at < 8; ++at) {
      const int k = l % 4 * 2 + at / 4 * 8 + at % 2;
      a[l / 4 + at / 2 % 2 * 8][k] = number(lane[l].a[at / 2], at % 2);
      if (at / 2 % 2 == 0) b[k][l / 4] = number(lane[l].b[at / 4], at % 2);
    }
  for (int l = 0; l < 32; ++l)
    for (int at = 0; at < 4; ++at) {
      double sum = lane[l].d[at];
      for (int k = 0; k < 16; ++k) sum += a[l / 4 + at / 2 * 8][k] * b[k][l % 4 * 2 + at % 2];
      lane[l].d[at] = float(sum);
    }
}

[[noreturn]] inline void deadlock() {
  std::fprintf(stderr, "block (%u): threads can never meet\n", machine.block.x);
  for (const Fiber& f : machine.fibers)
    std::fprintf(stderr, "  thread %u: %s, line %d\n", f.thread,
                 f.at == Meeting::done    ? "left"
                 : f.at == Meeting::block ? "at __syncthreads"
                 : f.at == Meeting::warp  ? "at __syncwarp"
                 : f.at == Meeting::multiply ? "at a tensor core's product"
                                             : "at a shuffle",
                 f.line);
  std::exit(3);
}

// Lets a warp go on if all its lanes have come to the same place.
inline bool release_warp(size_t first) {
  Fiber* lane = &machine.fibers[first];
  if (lane[0].at < Meeting::warp || lane[0].at == Meeting::done) return false;
  for (int l = 1; l < 32; ++l)
    if (lane[l].at != lane[0].at || lane[l].line != lane[0].line) return false;
  if (lane[0].at == Meeting::multiply) multiply_add(lane);
  for (int l = 0; l < 32 && lane[0].at != Meeting::warp && lane[0].at != Meeting::multiply; ++l) {
    const int width = lane[l].width, start = l / width * width, argument = lane[l].argument;
    int from = l;
    if (lane[l].at == Meeting::shuffle_xor) from = l ^ argument;
    if (lane[l].at == Meeting::shuffle_down) from = l + argument;
    if (lane[l].at == Meeting::shuffle_up) from = l - argument;
    if (lane[l].at == Meeting::shuffle_from) from = start + argument % width;
    if (from < start || from >= start + width) from = l;
    std::memcpy(lane[l].result, lane[from].value, sizeof lane[l].result);
  }
  for (int l = 0; l < 32; ++l) lane[l].at = Meeting::none;
  return true;
}

inline bool release_block() {
  for (const Fiber& f : machine.fibers)
    if (f.at != Meeting::block || f.line != machine.fibers[0].line) return false;
  if (machine.counts) count_banks();
  for (Fiber& f : machine.fibers) f.at = Meeting::none;
  return true;
}

inline void run_block() {
  const char* order = std::getenv("EMULATED_ORDER");
  const bool reversed = order && std::strcmp(order, "reversed") == 0;
  const size_t n = machine.fibers.size();
  for (Fiber& f : machine.fibers) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
    f.at = Meeting::none;
    f.fake_stack = nullptr;
  }
  for (;;) {
    bool progress = false, all_done = true;
    for (size_t k = 0; k < n; ++k) {
      Fiber& f = machine.fibers[reversed ? n - 1 - k : k];
      if (f.at == Meeting::none) {
        enter(f);
        progress = true;
      }
      all_done = all_done && f.at == Meeting::done;
    }
    if (all_done) {
      if (machine.counts) count_banks();
      return;
    }
    for (size_t first = 0; first < n; first += 32) progress = release_warp(first) || progress;
    progress = release_block() || progress;
    if (!progress) deadlock();
  }
}

inline void launch(unsigned grid, unsigned block, int64_t shared_bytes, const std::function<void()>& kernel) {
  if (block == 0 || block % 32 || block > 1024) throw std::runtime_error("the emulator has blocks of whole warps, up to 1024");
  machine.kernel = kernel;
  machine.grid_size = {grid};
  machine.block_size = {block};
  machine.fibers.resize(block);
  for (unsigned t = 0; t < block; ++t) {
    machine.fibers[t].thread = t;
    machine.fibers[t].stack.resize(128 << 10);
  }
  for (unsigned b = 0; b < grid; ++b) {
    machine.block = {b};
    machine.shared = static_cast<unsigned char*>(std::malloc(shared_bytes));
    std::memset(machine.shared, 0xff, shared_bytes);  // NaN: what a kernel reads before it writes is seen
    run_block();
    std::free(machine.shared);
  }
}

// Four of the bytes of x and y, by the low three bits of each of four hexadecimal digits.
inline uint32_t byte_perm(uint32_t x, uint32_t y, uint32_t which) {
  const uint64_t bytes = x | uint64_t(y) << 32;
  uint32_t out = 0;
  for (int k = 0; k < 4; ++k) out |= uint32_t(bytes >> (which >> 4 * k & 7) * 8 & 255) << 8 * k;
  return out;
}

inline Index thread_index() { return {machine.running->thread, 0, 0}; }

}  // namespace emulated

#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::machine.block)
#define blockDim (emulated::machine.block_size)
#define gridDim (emulated::machine.grid_size)
#define __syncthreads() emulated::meet(emulated::Meeting::block, __LINE__)
#define __syncwarp() emulated::meet(emulated::Meeting::warp, __LINE__)
#define __byte_perm(x, y, which) emulated::byte_perm(x, y, which)
#define LOUPE_MULTIPLY_ADD(d, a, b) emulated::multiply_add(d, a, b, __LINE__)
#define __shfl_xor_sync(mask, x, d, width) emulated::shuffle(emulated::Meeting::shuffle_xor, mask, x, d, width, __LINE__)
#define __shfl_down_sync(mask, x, d, width) emulated::shuffle(emulated::Meeting::shuffle_down, mask, x, d, width, __LINE__)
#define __shfl_up_sync(mask, x, d, width) emulated::shuffle(emulated::Meeting::shuffle_up, mask, x, d, width, __LINE__)
#define __shfl_sync(mask, x, from, width) emulated::shuffle(emulated::Meeting::shuffle_from, mask, x, from, width, __LINE__)

#define LOUPE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), emulated::launch(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }))
#define LOUPE_DYNAMIC_SHARED(name) unsigned char* name = emulated::machine.shared

namespace loupe {

constexpr bool kTensorCores = true;

inline int multiprocessors() { return 1; }
inline int max_shared_bytes() {
  const char* bytes = std::getenv("EMULATED_SHARED_BYTES");
  return bytes ? std::atoi(bytes) : 232448;
}

}  // namespace loupe
