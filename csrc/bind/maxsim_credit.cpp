#include "../cpu/maxsim_credit.h"

#include "../cpu/targets.h"
#include "bind.h"
#ifdef LOUPE_WITH_CUDA
#include "../cuda/maxsim_credit.h"
#endif

namespace loupe {

void bind_maxsim_credit(pybind11::module_& module) {
  using Address = uintptr_t;
  module.def("maxsim_credit_cpu", [](const PairwiseCall& call, Address out, int threads) {
    check_lengths(call, "document_lengths", "query_lengths");
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(credit_forward(call, pointer(out), threads));
  });
  module.def("maxsim_credit_backward_cpu", [](const PairwiseCall& call, Address grad, Address grad_scores, int threads) {
    check_lengths(call, "document_lengths", "query_lengths");
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(credit_backward(call, pointer(grad), pointer(grad_scores), threads));
  });
#ifdef LOUPE_WITH_CUDA
  module.def("maxsim_credit_scratch_bytes_cuda", &credit_scratch_bytes_cuda);
  module.def("maxsim_credit_cuda", [](const PairwiseCall& call, Address out, Address scratch, Address stream) {
    credit_forward_cuda(call, pointer(out), pointer(scratch), pointer(stream));
  });
  module.def("maxsim_credit_backward_cuda", [](const PairwiseCall& call, Address grad, Address grad_scores, Address scratch,
                                               Address stream) {
    credit_backward_cuda(call, pointer(grad), pointer(grad_scores), pointer(scratch), pointer(stream));
  });
#endif
}

}  // namespace loupe
