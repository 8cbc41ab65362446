// Runs csrc/cuda/coalitions.cu on one call read from standard input; tests/emulation/__init__.py writes it.
#include "../../csrc/cuda/coalitions.cu"

#include <memory>

template <class Value, class Sample>
void run(const loupe::SampleCall& call, int64_t size, const Sample& sample) {
  std::unique_ptr<Value[]> out(new Value[size]);
  std::memset(out.get(), 0xff, size * sizeof(Value));
  sample(call, out.get(), nullptr);
  std::fwrite(out.get(), sizeof(Value), size, stdout);
}

int main() {
  int64_t x[10];  // 0: coalitions, 1: permutations; then SampleCall's fields in order
  if (std::fread(x, 1, sizeof x, stdin) != sizeof x) return 1;
  const loupe::SampleCall call{x[1], x[2], x[3], x[4], uint64_t(x[5]), int(x[6]), x[7] != 0, x[8] != 0, uint32_t(x[9])};
  const int64_t all = call.problems * call.samples;
  if (x[0] == 0) run<uint64_t>(call, all * call.words(), loupe::sample_coalitions_cuda);
  if (x[0] == 1) run<int32_t>(call, all * call.players, loupe::sample_permutations_cuda);
}
