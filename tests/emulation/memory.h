// What the emulation programs share: tensors from standard input.
#pragma once

#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

inline void read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) throw std::runtime_error("standard input is too short");
}

// A heap block of exactly the size asked for, so that AddressSanitizer sees every step beyond it; new ones hold NaN.
struct Memory {
  explicit Memory(size_t n) : bytes(n), data(new unsigned char[n]) { std::memset(data.get(), 0xff, n); }
  Memory& filled() {
    read(data.get(), bytes);
    return *this;
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data.get());
  }
  void write() const { std::fwrite(data.get(), 1, bytes, stdout); }
  size_t bytes;
  std::unique_ptr<unsigned char[]> data;
};
