#include "../cpu/region.h"

#include "../cpu/region_maxima.h"
#include "../cpu/targets.h"
#include "bind.h"
#ifdef LOUPE_WITH_CUDA
#include "../cuda/region.h"
#include "../cuda/region_maxima.h"
#endif

namespace loupe {

void bind_region(pybind11::module_& module) {
  using Address = uintptr_t;
  pybind11::class_<RegionCall>(module, "RegionCall")
      .def(pybind11::init([](Address values, Address gram, Address regions, Address orders, int64_t B, int64_t R, int64_t K,
                             int n, bool prefixes, const std::string& dtype) {
        return RegionCall{pointer(values), pointer(gram), pointer<uint64_t>(regions), pointer<int32_t>(orders), B, R, K, n,
                          prefixes, dtype_from(dtype)};
      }));
  module.def("region_walks_cpu", [](const RegionCall& call, Address out, int threads) {
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(region_walks(call, pointer(out), threads));
  });
  pybind11::class_<MaximaCall>(module, "MaximaCall")
      .def(pybind11::init([](Address sorted, Address order, Address regions, Address slopes, Address lengths, int64_t B,
                             int64_t R, int64_t N, int n, const std::string& dtype) {
        return MaximaCall{pointer(sorted), pointer<int64_t>(order), pointer<uint64_t>(regions), pointer(slopes),
                          pointer<int64_t>(lengths), B, R, N, n, dtype_from(dtype)};
      }));
  module.def("region_maxima_cpu", [](const MaximaCall& call, Address out, int threads) {
    pybind11::gil_scoped_release release;
    LOUPE_ON_TARGET(region_maxima(call, pointer(out), threads));
  });
#ifdef LOUPE_WITH_CUDA
  module.def("region_scratch_bytes_cuda", &region_scratch_bytes_cuda);
  module.def("region_walks_cuda", [](const RegionCall& call, Address out, Address scratch, Address stream) {
    region_walks_cuda(call, pointer(out), pointer(scratch), pointer(stream));
  });
  module.def("region_maxima_cuda", [](const MaximaCall& call, Address out, Address stream) {
    region_maxima_cuda(call, pointer(out), pointer(stream));
  });
#endif
}

}  // namespace loupe
