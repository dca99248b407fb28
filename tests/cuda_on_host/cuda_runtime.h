// Runs CUDA code on the CPU, for tests: stands in for the toolkit's header of this name.
//
// A block's threads are fibers that run one after the other, each up to its next __syncthreads. A barrier
// that only some of them reach ends the program, as do reads or writes outside of memory that a sanitizer
// would see. Device memory is ordinary memory, filled with a pattern. Blocks run one by one.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __CUDA_ARCH__ 900  // takes the device's branches of order_law.h
#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address += value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  *address = old > value ? old : value;
  return old;
}

struct Dimensions {
  unsigned x;
};
inline Dimensions threadIdx, blockIdx;
inline void* dynamic_shared;

// The fibers of the block that runs.
struct Block {
  struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
  };
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  std::function<void()> body;

  static Block& running() {
    static Block block;
    return block;
  }
  static void enter() {
    Block& block = running();
    block.body();
    block.fibers[threadIdx.x].done = true;
  }
  void run(unsigned threads) {
    fibers.resize(threads);
    for (Fiber& fiber : fibers) {
      fiber.stack.resize(1 << 16);
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    for (unsigned done = 0; done == 0;) {
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) {
        swapcontext(&scheduler, &fibers[threadIdx.x].context);
        done += fibers[threadIdx.x].done;
      }
      if (done != 0 && done != threads) {
        std::fprintf(stderr, "%u of %u threads ended while the others wait at a barrier\n", done, threads);
        std::abort();
      }
    }
  }
};

inline void __syncthreads() {
  Block& block = Block::running();
  swapcontext(&block.fibers[threadIdx.x].context, &block.scheduler);
}

inline void launch(unsigned grid, unsigned threads, size_t shared, std::function<void()> body) {
  std::vector<uint64_t> memory(shared / 8 + 1, 0xA5A5A5A5A5A5A5A5ull);
  dynamic_shared = memory.data();
  Block::running().body = std::move(body);
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) Block::running().run(threads);
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
