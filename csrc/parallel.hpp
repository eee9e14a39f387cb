// The one way this extension uses threads: a pool that the process shares.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace pairformer {

// Processors this process may use: its affinity mask and its control group's quota, where there are such.
int available_threads();

// Calls body(task) once for every task in [0, tasks), on the calling thread and at most threads - 1 of the
// pool. Tasks are handed out in order from one counter, so which thread has which is not fixed: a body
// writes only to places that belong to its task. The first exception of a body is thrown again here.
// Idle threads sleep, and a forked child starts a pool of its own.
void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body);

// Calls body(first, end) for slices of at most `most` of the rows [0, n), as tasks of parallel_for.
void parallel_rows(int64_t n, int64_t most, int threads, const std::function<void(int64_t, int64_t)>& body);

// 0 .. n - 1, falling by size, equal sizes rising: so that no large task is left for the end.
std::vector<int64_t> largest_first(int64_t n, const std::function<int64_t(int64_t)>& size);

}  // namespace pairformer
