// Uninitialised memory, aligned to a cache line.
#pragma once

#include <cstdint>
#include <new>

namespace loupe::LOUPE_TARGET {
namespace {  // an object of one target must not share its code with another's

template <class T>
struct Buffer {
  explicit Buffer(int64_t n) : data(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64)))) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  operator T*() const { return data; }
  T* data;
};

}  // namespace
}  // namespace loupe::LOUPE_TARGET
