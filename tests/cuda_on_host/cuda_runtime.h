// Runs CUDA code on the CPU, for tests: stands in for the toolkit's header of this name.
//
// A block is a thread of the host. Its own threads are fibers there, which run one after the other, each up
// to its next __syncthreads, in an order that is drawn anew at every barrier (CUDA_ON_HOST_SEED, 0). A
// barrier that only some of them reach ends the program. Device memory is ordinary memory, filled with a
// pattern.
//
// Under ThreadSanitizer (-fsanitize=thread) each fiber is a thread to it, and nothing but a barrier orders
// two fibers of a block, and nothing at all two blocks: it reports what a GPU may do in either order,
// whatever the order here was. CUDA_ON_HOST_SKIP is the line of a barrier that is left out, to show that this
// is found.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define UNSEEN __attribute__((no_sanitize_thread))
#else
#define UNSEEN
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
constexpr unsigned __tsan_switch_to_fiber_no_sync = 1;
#endif

#define __CUDA_ARCH__ 900  // takes the device's branches of order_law.h
#define __device__
#define __global__
#define __launch_bounds__(threads, blocks)
#define __shared__ static thread_local
#define __syncthreads() Block::running->wait(__LINE__)

inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
template <typename T>
T atomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicMax(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value &&
         !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

struct Dimensions {
  unsigned x;
};
inline thread_local Dimensions threadIdx, blockIdx;
inline thread_local void* dynamic_shared;

inline int number_from_environment(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

// One block: its fibers, and the host's thread that runs them in turn.
class Block {
 public:
  static inline thread_local Block* running;

  Block(unsigned threads, const std::function<void()>& body)
      : threads_(threads), body_(body), skipped_(number_from_environment("CUDA_ON_HOST_SKIP")) {
    fibers_ = new Fiber[threads];
    stacks_.resize(size_t(threads) * kStack);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.seen = __tsan_create_fiber(0);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_.data() + size_t(i) * kStack;
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, &Block::enter, 0);
    }
  }
  ~Block() {
    for (unsigned i = 0; i < threads_; ++i) __tsan_destroy_fiber(fibers_[i].seen);
    delete[] fibers_;
  }

  void run() {
    running = this;
    scheduler_.seen = __tsan_get_current_fiber();
    std::mt19937 random(unsigned(number_from_environment("CUDA_ON_HOST_SEED")) * 4096u + blockIdx.x);
    std::vector<unsigned> order(threads_);
    for (unsigned i = 0; i < threads_; ++i) order[i] = i;
    __tsan_release(&barriers_[0]);
    for (unsigned done = 0; done == 0; ++round_) {
      for (unsigned i = threads_; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
      for (unsigned thread : order) done += resume(thread);
      if (done != 0 && done != threads_) {
        std::fprintf(stderr, "%u of %u threads ended while the others wait at a barrier\n", done, threads_);
        std::abort();
      }
    }
    __tsan_acquire(&barriers_[round_ % 2]);
  }

  // __syncthreads: what every fiber did before the barrier comes before what any does after it. Two barriers
  // in turn, since one fiber reaches the next barrier before another has left this one.
  UNSEEN void wait(int line) {
    if (line == skipped_) return;
    leave();
    __tsan_acquire(&barriers_[round_ % 2]);
  }

 private:
  struct Fiber {
    ucontext_t context;
    void* seen;  // as ThreadSanitizer knows it
    bool done = false;
  };
  static constexpr size_t kStack = 1 << 16;

  UNSEEN static void enter() {
    Block* block = running;
    __tsan_acquire(&block->barriers_[0]);
    block->body_();
    block->fibers_[threadIdx.x].done = true;
    block->leave();
  }
  UNSEEN bool resume(unsigned thread) {
    threadIdx.x = thread;
    switch_to(fibers_[thread], scheduler_);
    return fibers_[thread].done;
  }
  UNSEEN void leave() {
    __tsan_release(&barriers_[(round_ + 1) % 2]);
    switch_to(scheduler_, fibers_[threadIdx.x]);
  }
  UNSEEN static void switch_to(Fiber& next, Fiber& from) {
    __tsan_switch_to_fiber(next.seen, __tsan_switch_to_fiber_no_sync);
    swapcontext(&from.context, &next.context);
  }

  unsigned threads_, round_ = 0;
  const std::function<void()>& body_;
  int skipped_;
  Fiber* fibers_;
  Fiber scheduler_;
  std::vector<char> stacks_;
  char barriers_[2];
};

inline void launch(unsigned grid, unsigned threads, size_t shared, std::function<void()> body) {
  std::vector<std::thread> blocks;
  for (unsigned number = 0; number < grid; ++number)
    blocks.emplace_back([=, &body] {
      std::vector<uint64_t> memory(shared / 8 + 1, 0xA5A5A5A5A5A5A5A5ull);
      blockIdx.x = number;
      dynamic_shared = memory.data();
      Block(threads, body).run();
    });
  for (std::thread& block : blocks) block.join();
}

enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
typedef int* cudaEvent_t;
struct cudaDeviceProp {
  int multiProcessorCount = 2;
};
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 2, cudaSuccess;
}
inline cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = std::malloc(bytes);
  return std::memset(*pointer, 0xA5, bytes), cudaSuccess;
}
inline cudaError_t cudaFree(void* pointer) { return std::free(pointer), cudaSuccess; }
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return std::memset(to, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
