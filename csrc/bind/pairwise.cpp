#include "../cpu/pairwise.h"

#include <cmath>
#include <optional>

#include "../cpu/targets.h"
#include "bind.h"
#ifdef LOUPE_WITH_CUDA
#include "../cuda/pairwise.h"
#endif

namespace loupe {
namespace {

void check(const char* name, const int64_t* lengths, int64_t B, int64_t most) {
  for (int64_t b = 0; lengths && b < B; ++b)
    if (lengths[b] < 0 || lengths[b] > most)
      throw std::invalid_argument(std::string(name) + ": expected values in 0.." + std::to_string(most) + ", got " +
                                  std::to_string(lengths[b]) + " at [" + std::to_string(b) + "]");
}

Game game_from(const std::string& name) {
  if (name == "max-mean") return Game::max_mean;
  if (name == "maxsim") return Game::maxsim;
  throw std::invalid_argument("game: expected max-mean or maxsim, got " + name);
}

PairwiseCall make_call(uintptr_t scores, uintptr_t col_scores, uintptr_t region_lengths, uintptr_t phrase_lengths, int64_t B,
                       int64_t M, int64_t N, const std::string& dtype, std::optional<double> p, const std::string& game) {
  return {pointer(scores), pointer(col_scores), pointer<int64_t>(region_lengths), pointer<int64_t>(phrase_lengths), B, M, N,
          dtype_from(dtype), p.value_or(NAN), game_from(game)};
}

}  // namespace

void check_lengths(const PairwiseCall& call, const char* rows, const char* columns) {
  check(rows, call.region_lengths, call.B, call.M);
  check(columns, call.phrase_lengths, call.B, call.N);
}

void bind_pairwise(pybind11::module_& module) {
  using Address = uintptr_t;
  pybind11::class_<PairwiseCall>(module, "PairwiseCall").def(pybind11::init(&make_call));
  module.def("pairwise_cpu", [](const PairwiseCall& call, Address out, int threads) {
    check_lengths(call);
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(pairwise_forward(call, pointer(out), threads));
  });
  module.def("pairwise_backward_cpu", [](const PairwiseCall& call, Address grad, Address grad_scores, Address grad_col_scores,
                                         int threads) {
    check_lengths(call);
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(pairwise_backward(call, pointer(grad), pointer(grad_scores), pointer(grad_col_scores), threads));
  });
#ifdef LOUPE_WITH_CUDA
  module.def("pairwise_scratch_bytes_cuda", &pairwise_scratch_bytes_cuda);
  module.def("pairwise_cuda", [](const PairwiseCall& call, Address out, Address scratch, Address stream) {
    pairwise_forward_cuda(call, pointer(out), pointer(scratch), pointer(stream));
  });
  module.def("pairwise_backward_cuda", [](const PairwiseCall& call, Address grad, Address grad_scores, Address grad_col_scores,
                                          Address scratch, Address stream) {
    pairwise_backward_cuda(call, pointer(grad), pointer(grad_scores), pointer(grad_col_scores), pointer(scratch),
                           pointer(stream));
  });
#endif
}

}  // namespace loupe
