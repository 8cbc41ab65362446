#include "../cpu/targets.h"
#include "bind.h"

PYBIND11_MODULE(_C, module) {
  using namespace loupe;
  module.doc() = "Kernels of loupe_ext. The public functions are in loupe_ext.ops.";
#ifdef LOUPE_WITH_CUDA
  module.attr("has_cuda") = true;
#else
  module.attr("has_cuda") = false;
#endif
  module.def("cpu_targets", [] {
    std::vector<std::string> names;
    for (CpuTarget target : cpu_targets()) names.push_back(name_of(target));
    return names;
  }, "SIMD targets that this machine runs, slowest first.");
  module.def("cpu_target", [] { return name_of(cpu_target()); }, "The SIMD target in use.");
  module.def("set_cpu_target", &set_cpu_target, pybind11::arg("target"), "Choose another of cpu_targets().");
  bind_coalitions(module);
  bind_maxsim_credit(module);
  bind_moments(module);
  bind_pairwise(module);
  bind_region(module);
  bind_sides(module);
}
