// Splits 0..n over threads. OpenMP shares torch's pool; the thread count is always the caller's (torch.get_num_threads()),
// since a forked DataLoader worker, where torch sets it to 1, must not start a team. The team takes on the caller's
// floating-point environment (torch.set_flush_denormal sets it in one thread), so that its size does not show.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <exception>

namespace loupe {

// Calls make() once per thread, and its result with (begin, end) for chunks of 0..n; an exception reaches the caller.
template <class Make>
void parallel_chunks(int64_t n, int64_t chunk, int threads, const Make& make) {
  const int64_t chunks = (n + chunk - 1) / chunk;
  threads = int(std::min<int64_t>(threads, chunks));
  if (chunks == 0) return;
  if (threads <= 1) return make()(int64_t(0), n);
  std::exception_ptr failure;
  std::fenv_t environment;
  std::fegetenv(&environment);
#pragma omp parallel num_threads(threads)
  {
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&environment);
    try {
      auto work = make();
#pragma omp for schedule(dynamic) nowait
      for (int64_t c = 0; c < chunks; ++c) work(c * chunk, std::min(n, (c + 1) * chunk));
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
    std::fesetenv(&own);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace loupe
