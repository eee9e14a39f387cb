// Ragged batches and the one way this extension uses threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#ifdef __linux__
#include <sched.h>
#endif

namespace pairformer {

// B bags over one flat array: bag b owns rows offsets[b] .. offsets[b + 1] - 1.
template <class T>
struct Ragged {
  const T* data;
  const int64_t* offsets;  // (bags + 1)
  int64_t bags;

  const T* begin(int64_t b) const { return data + offsets[b]; }
  int64_t size(int64_t b) const { return offsets[b + 1] - offsets[b]; }
};

// Processors this process may run on (its affinity mask, where the system has one).
inline int available_threads() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// Calls body(task) once for every task in [0, tasks), on at most `threads` threads.
// Tasks are handed out from one counter, so their order over threads is not fixed: a body writes only
// to places that belong to its task. The first exception of a body is thrown again here.
template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  const int64_t workers = std::min<int64_t>(threads, tasks);
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_lock;
  auto work = [&] {
    try {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(error_lock);
      if (!error) error = std::current_exception();
      next.store(tasks);
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  try {
    for (int64_t i = 1; i < workers; ++i) pool.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do the work.
  }
  work();
  for (auto& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace pairformer
