#include "../cpu/pairwise.h"

#include <cmath>
#include <optional>

#include "../cpu/targets.h"
#include "bind.h"

namespace loupe {
namespace {

void check_lengths(const char* name, const int64_t* lengths, int64_t B, int64_t most) {
  for (int64_t b = 0; lengths && b < B; ++b)
    if (lengths[b] < 0 || lengths[b] > most)
      throw std::invalid_argument(std::string(name) + ": expected values in 0.." + std::to_string(most) + ", got " +
                                  std::to_string(lengths[b]) + " at [" + std::to_string(b) + "]");
}

PairwiseCall make_call(uintptr_t scores, uintptr_t col_scores, uintptr_t region_lengths, uintptr_t phrase_lengths, int64_t B,
                       int64_t M, int64_t N, const std::string& dtype, std::optional<double> p) {
  return {pointer(scores), pointer(col_scores), pointer<int64_t>(region_lengths), pointer<int64_t>(phrase_lengths), B, M, N,
          dtype_from(dtype), p.value_or(NAN)};
}

void check_cpu(const PairwiseCall& call) {
  check_lengths("region_lengths", call.region_lengths, call.B, call.M);
  check_lengths("phrase_lengths", call.phrase_lengths, call.B, call.N);
}

}  // namespace

void bind_pairwise(pybind11::module_& module) {
  using Ints = uintptr_t;
  using Name = const std::string&;
  using P = std::optional<double>;
  module.def("pairwise_cpu", [](Ints s, Ints c, Ints m, Ints n, int64_t B, int64_t M, int64_t N, Name dtype, P p, Ints out, int threads) {
    const PairwiseCall call = make_call(s, c, m, n, B, M, N, dtype, p);
    check_cpu(call);
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(pairwise_forward(call, pointer(out), threads));
  });
  module.def("pairwise_backward_cpu", [](Ints s, Ints c, Ints m, Ints n, int64_t B, int64_t M, int64_t N, Name dtype, P p, Ints grad,
                                         Ints grad_scores, Ints grad_col_scores, int threads) {
    const PairwiseCall call = make_call(s, c, m, n, B, M, N, dtype, p);
    check_cpu(call);
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(pairwise_backward(call, pointer(grad), pointer(grad_scores), pointer(grad_col_scores), threads));
  });
}

}  // namespace loupe
