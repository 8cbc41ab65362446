// Picks the SIMD target of this machine at run time. LOUPE_ON_TARGET(f(args)) calls f of the chosen target's namespace.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace loupe {

enum class CpuTarget { generic, avx2, avx512 };

inline std::vector<CpuTarget> cpu_targets() {  // slowest first
  std::vector<CpuTarget> found{CpuTarget::generic};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    found.push_back(CpuTarget::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
      found.push_back(CpuTarget::avx512);
  }
#endif
  return found;
}

inline CpuTarget& cpu_target() {
  static CpuTarget chosen = cpu_targets().back();
  return chosen;
}

inline std::string name_of(CpuTarget target) {
  return target == CpuTarget::avx512 ? "avx512" : target == CpuTarget::avx2 ? "avx2" : "generic";
}

inline void set_cpu_target(const std::string& name) {
  for (CpuTarget target : cpu_targets())
    if (name_of(target) == name) {
      cpu_target() = target;
      return;
    }
  throw std::invalid_argument("target: expected one that this machine runs (see cpu_targets()), got '" + name + "'");
}

}  // namespace loupe

#ifdef __x86_64__
#define LOUPE_ON_TARGET(...)                                               \
  (loupe::cpu_target() == loupe::CpuTarget::avx512 ? loupe::avx512::__VA_ARGS__ \
   : loupe::cpu_target() == loupe::CpuTarget::avx2 ? loupe::avx2::__VA_ARGS__   \
                                                   : loupe::generic::__VA_ARGS__)
#else
#define LOUPE_ON_TARGET(...) loupe::generic::__VA_ARGS__
#endif
