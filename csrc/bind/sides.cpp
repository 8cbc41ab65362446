#include "../cpu/sides.h"

#include "../cpu/targets.h"
#include "bind.h"
#ifdef LOUPE_WITH_CUDA
#include "../cuda/sides.h"
#endif

namespace loupe {

void bind_sides(pybind11::module_& module) {
  using Address = uintptr_t;
  module.def("sides_cpu", [](const PairwiseCall& call, int order, Address regions, Address phrases, int threads) {
    check_lengths(call);
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(sides_forward(call, order, pointer(regions), pointer(phrases), threads));
  });
  module.def("sides_backward_cpu", [](const PairwiseCall& call, int order, Address grad_regions, Address grad_phrases,
                                      Address grad_scores, Address grad_col_scores, int threads) {
    check_lengths(call);
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(sides_backward(call, order, pointer(grad_regions), pointer(grad_phrases), pointer(grad_scores),
                                   pointer(grad_col_scores), threads));
  });
#ifdef LOUPE_WITH_CUDA
  module.def("sides_scratch_bytes_cuda", &sides_scratch_bytes_cuda);
  module.def("sides_cuda", [](const PairwiseCall& call, int order, Address regions, Address phrases, Address scratch,
                              Address stream) {
    sides_forward_cuda(call, order, pointer(regions), pointer(phrases), pointer(scratch), pointer(stream));
  });
  module.def("sides_backward_cuda", [](const PairwiseCall& call, int order, Address grad_regions, Address grad_phrases,
                                       Address grad_scores, Address grad_col_scores, Address scratch, Address stream) {
    sides_backward_cuda(call, order, pointer(grad_regions), pointer(grad_phrases), pointer(grad_scores),
                        pointer(grad_col_scores), pointer(scratch), pointer(stream));
  });
#endif
}

}  // namespace loupe
