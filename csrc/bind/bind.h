// What every op's binding shares: tensors arrive as addresses, sizes and dtype names; nothing is decided here.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "../core/dtype.h"

namespace loupe {

inline DType dtype_from(const std::string& name) {
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float32") return DType::f32;
  if (name == "float64") return DType::f64;
  throw pybind11::type_error("dtype: expected float16, bfloat16, float32 or float64, got " + name);
}

template <class T = void>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

struct PairwiseCall;
// Of a call whose tensors are on the CPU.
void check_lengths(const PairwiseCall& call, const char* rows = "region_lengths", const char* columns = "phrase_lengths");

void bind_coalitions(pybind11::module_& module);
void bind_maxsim_credit(pybind11::module_& module);
void bind_moments(pybind11::module_& module);
void bind_pairwise(pybind11::module_& module);
void bind_region(pybind11::module_& module);
void bind_sides(pybind11::module_& module);

}  // namespace loupe
