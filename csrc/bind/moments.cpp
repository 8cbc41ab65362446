#include "../cpu/moments.h"

#include "../cpu/targets.h"
#include "bind.h"
#ifdef LOUPE_WITH_CUDA
#include "../cuda/moments.h"
#endif

namespace loupe {
namespace {

MomentsCall make_call(uintptr_t coalitions, uintptr_t offsets, int64_t C, int64_t S, int64_t G, int n,
                      const std::string& dtype) {
  return {pointer<uint64_t>(coalitions), pointer<int64_t>(offsets), C, S, G, n, dtype_from(dtype)};
}

void check_offsets(const int64_t* offsets, int64_t G, int64_t S) {
  const auto fail = [](const std::string& expected, int64_t got, int64_t at) {
    throw std::invalid_argument("offsets: expected " + expected + ", got " + std::to_string(got) + " at [" +
                                std::to_string(at) + "]");
  };
  if (offsets[0] != 0) fail("0 first", offsets[0], 0);
  for (int64_t g = 0; g < G; ++g)
    if (offsets[g + 1] < offsets[g]) fail("values that never decrease", offsets[g + 1], g + 1);
  if (offsets[G] != S) fail("the number of coalitions, " + std::to_string(S) + ", last", offsets[G], G);
}

}  // namespace

void bind_moments(pybind11::module_& module) {
  using Address = uintptr_t;
  pybind11::class_<MomentsCall>(module, "MomentsCall").def(pybind11::init(&make_call));
  module.def("check_offsets", [](Address offsets, int64_t G, int64_t S) { check_offsets(pointer<int64_t>(offsets), G, S); });
  module.def("moments_cpu", [](const MomentsCall& call, Address values, Address out, int threads) {
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(moments_forward(call, pointer(values), pointer(out), threads));
  });
  module.def("moments_backward_cpu", [](const MomentsCall& call, Address grad, Address grad_values, int threads) {
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(moments_backward(call, pointer(grad), pointer(grad_values), threads));
  });
#ifdef LOUPE_WITH_CUDA
  module.def("moments_scratch_bytes_cuda", &moments_scratch_bytes_cuda);
  module.def("moments_cuda", [](const MomentsCall& call, Address values, Address out, Address scratch, Address stream) {
    moments_forward_cuda(call, pointer(values), pointer(out), pointer(scratch), pointer(stream));
  });
  module.def("moments_backward_cuda", [](const MomentsCall& call, Address grad, Address grad_values, Address stream) {
    moments_backward_cuda(call, pointer(grad), pointer(grad_values), pointer(stream));
  });
#endif
}

}  // namespace loupe
