// Kernels with planted mistakes, to see that the emulator finds them, and some without; standard input names one.
#include "../../csrc/cuda/launch.h"

#include <string>

__global__ void divergent_barrier(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void shuffle_without_a_lane(int* out) {
  if (threadIdx.x % 32 != 7) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1, 32);
}

__global__ void shared_overflow(int* out) {
  LOUPE_DYNAMIC_SHARED(memory);
  int* values = reinterpret_cast<int*>(memory);
  values[threadIdx.x + 1] = 1;  // the last thread is out of bounds
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void global_overflow(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void missing_barrier(int* out) {
  LOUPE_DYNAMIC_SHARED(memory);
  int* values = reinterpret_cast<int*>(memory);
  values[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void reversed_through_shared(int* out) {
  LOUPE_DYNAMIC_SHARED(memory);
  int* values = reinterpret_cast<int*>(memory);
  values[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  const int mine = values[63 - threadIdx.x];
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, __shfl_up_sync(0xffffffffu, mine, 4, 32), 4, 32);
}

uint32_t two_numbers(int low, int high) {  // in bfloat16
  const float x[2] = {float(low), float(high)};
  uint32_t bits[2];
  std::memcpy(bits, x, sizeof x);
  return bits[0] >> 16 | (bits[1] & 0xffff0000u);
}
// Matrices of small integers by a tensor core: of the product, a warp writes rows 0 .. 7, the other 8 .. 15.
__global__ void product(int* out) {
  const int lane = int(threadIdx.x) % 32, group = lane / 4, pair = lane % 4 * 2;
  const auto a = [](int i, int k) { return (7 * i + 3 * k) % 5; };
  const auto b = [](int k, int j) { return (5 * k + 11 * j) % 7; };
  const auto row = [&](int i, int k) { return two_numbers(a(i, k), a(i, k + 1)); };
  const auto column = [&](int k) { return two_numbers(b(k, group), b(k + 1, group)); };
  const uint32_t left[4] = {row(group, pair), row(group + 8, pair), row(group, pair + 8), row(group + 8, pair + 8)};
  const uint32_t right[2] = {column(pair), column(pair + 8)};
  float sum[4] = {1, 2, 3, 4};
  LOUPE_MULTIPLY_ADD(sum, left, right);
  const float* mine = sum + threadIdx.x / 32 * 2;
  out[threadIdx.x] = int(mine[0]) + 1000 * int(mine[1]);
}

void touch_every(int words) {
  LOUPE_DYNAMIC_SHARED(memory);
  emulated::touch(memory + 4 * words * (threadIdx.x % 32), 4);
}
__global__ void one_bank(int*) { touch_every(32); }
__global__ void all_banks(int*) { touch_every(33); }
__global__ void one_word(int*) { touch_every(0); }

int main() {
  char name[64] = {};
  if (std::fread(name, 1, sizeof name - 1, stdin) == 0) return 1;
  int* out = new int[64];
  const std::string asked = name;
  if (asked == "divergent_barrier") LOUPE_LAUNCH(divergent_barrier, 1, 64, 256, nullptr, out);
  if (asked == "shuffle_without_a_lane") LOUPE_LAUNCH(shuffle_without_a_lane, 1, 64, 256, nullptr, out);
  if (asked == "shared_overflow") LOUPE_LAUNCH(shared_overflow, 1, 64, 256, nullptr, out);
  if (asked == "global_overflow") LOUPE_LAUNCH(global_overflow, 1, 64, 256, nullptr, out);
  if (asked == "missing_barrier") LOUPE_LAUNCH(missing_barrier, 1, 64, 256, nullptr, out);
  if (asked == "reversed_through_shared") LOUPE_LAUNCH(reversed_through_shared, 1, 64, 256, nullptr, out);
  if (asked == "product") LOUPE_LAUNCH(product, 1, 64, 256, nullptr, out);
  if (asked == "one_bank") LOUPE_LAUNCH(one_bank, 1, 64, 8192, nullptr, out);
  if (asked == "all_banks") LOUPE_LAUNCH(all_banks, 1, 64, 8192, nullptr, out);
  if (asked == "one_word") LOUPE_LAUNCH(one_word, 1, 64, 8192, nullptr, out);
  std::fwrite(out, sizeof *out, 64, stdout);
  delete[] out;
}
