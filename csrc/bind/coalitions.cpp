#include "../cpu/coalitions.h"

#include "../cpu/targets.h"
#include "bind.h"
#ifdef LOUPE_WITH_CUDA
#include "../cuda/coalitions.h"
#endif

namespace loupe {

void bind_coalitions(pybind11::module_& module) {
  using Address = uintptr_t;
  pybind11::class_<SampleCall>(module, "SampleCall")
      .def(pybind11::init([](int64_t problems, int64_t samples, int64_t first_problem, int64_t first_sample, int64_t seed,
                             int players, bool antithetic, bool stratified, uint32_t threshold) {
        return SampleCall{problems, samples, first_problem, first_sample, uint64_t(seed), players, antithetic, stratified, threshold};
      }));
  module.def("sample_coalitions_cpu", [](const SampleCall& call, Address out, int threads) {
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(sample_coalitions(call, pointer<uint64_t>(out), threads));
  });
  module.def("sample_permutations_cpu", [](const SampleCall& call, Address out, int threads) {
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(sample_permutations(call, pointer<int32_t>(out), threads));
  });
#ifdef LOUPE_WITH_CUDA
  module.def("sample_coalitions_cuda", [](const SampleCall& call, Address out, Address stream) {
    sample_coalitions_cuda(call, pointer<uint64_t>(out), pointer(stream));
  });
  module.def("sample_permutations_cuda", [](const SampleCall& call, Address out, Address stream) {
    sample_permutations_cuda(call, pointer<int32_t>(out), pointer(stream));
  });
#endif
}

}  // namespace loupe
