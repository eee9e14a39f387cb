#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <numeric>
#include <system_error>
#include <thread>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif
#ifdef __linux__
#include <sched.h>

#include <fstream>
#include <string>
#endif

namespace pairformer {
namespace {

#ifdef __linux__
// Whole processors of a control group's quota ("max" or microseconds, and the period), 0 for no limit.
int quota_of(std::ifstream& quota_file, std::ifstream& period_file) {
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>(quota / period + 0.5));
}

// The least quota among this process's control group and those above it, versions 2 and 1.
int control_group_limit() {
  int limit = 0;
  const auto note = [&](int found) {
    if (found > 0) limit = limit > 0 ? std::min(limit, found) : found;
  };
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string kinds = ',' + line.substr(first + 1, second - first - 1) + ',';
    const bool unified = kinds == ",,";
    if (!unified && kinds.find(",cpu,") == std::string::npos) continue;
    for (std::string path = line.substr(second + 1);; path.resize(path.find_last_of('/'))) {
      if (!path.empty() && path.back() == '/') path.pop_back();
      const std::string folder = (unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu") + path;
      if (unified) {
        std::ifstream both(folder + "/cpu.max");
        note(quota_of(both, both));
      } else {
        std::ifstream quota(folder + "/cpu.cfs_quota_us"), period(folder + "/cpu.cfs_period_us");
        note(quota_of(quota, period));
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return limit;
}
#endif

struct Job {
  const std::function<void(int64_t)>& body;
  const int64_t tasks;
  int64_t places;   // threads of the pool that may still join
  int running = 0;  // threads of the pool at work
  std::atomic<int64_t> next{0};
  std::mutex error_lock{};
  std::exception_ptr error{};

  void work() {
    try {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(error_lock);
      if (!error) error = std::current_exception();
      next.store(tasks);
    }
  }
};

class Pool {
 public:
  // Never destroyed: at exit its threads may be asleep, and nothing waits for them. A child that was forked
  // has none of its parent's threads, so it starts over.
  static Pool& instance() {
    [[maybe_unused]] static const int once = [] {
      current = new Pool;
#if defined(__unix__) || defined(__APPLE__)
      return pthread_atfork(nullptr, nullptr, [] { current = new Pool; });
#else
      return 0;
#endif
    }();
    return *current;
  }

  void run(Job& job) {
    std::unique_lock<std::mutex> guard(lock_);
    start(job.places);
    const auto place = jobs_.insert(jobs_.end(), &job);
    guard.unlock();
    wake_.notify_all();
    job.work();
    guard.lock();
    jobs_.erase(place);
    done_.wait(guard, [&] { return job.running == 0; });
  }

 private:
  // Signals are the program's own threads' to take, but for those of a thread's own faults.
  void start(int64_t threads) {
#if defined(__unix__) || defined(__APPLE__)
    sigset_t all, before;
    sigfillset(&all);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS, SIGPROF})
      sigdelset(&all, own);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    try {
      for (; threads_ < threads; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: those there are do the work.
    }
#if defined(__unix__) || defined(__APPLE__)
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
  }

  void serve() {
    std::unique_lock<std::mutex> guard(lock_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(guard, [&] {
        for (Job* waiting : jobs_)
          if (waiting->places > 0) job = waiting;
        return job != nullptr;
      });
      --job->places;
      ++job->running;
      guard.unlock();
      job->work();
      guard.lock();
      if (--job->running == 0) done_.notify_all();
    }
  }

  static std::atomic<Pool*> current;
  std::mutex lock_;
  std::condition_variable wake_, done_;
  std::list<Job*> jobs_;
  int64_t threads_ = 0;
};

std::atomic<Pool*> Pool::current{nullptr};

}  // namespace

int available_threads() {
  int threads = 0;
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) threads = CPU_COUNT(&set);
#endif
  if (threads == 0) threads = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
  static const int limit = control_group_limit();
  if (limit > 0) threads = std::min(threads, limit);
#endif
  return std::max(1, threads);
}

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
  const int64_t workers = std::min<int64_t>(threads, tasks);
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  Job job{body, tasks, workers - 1};
  Pool::instance().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

void parallel_rows(int64_t n, int64_t most, int threads, const std::function<void(int64_t, int64_t)>& body) {
  parallel_for((n + most - 1) / most, threads,
               [&](int64_t task) { body(task * most, std::min(n, (task + 1) * most)); });
}

std::vector<int64_t> largest_first(int64_t n, const std::function<int64_t(int64_t)>& size) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size(a) > size(b); });
  return order;
}

}  // namespace pairformer
