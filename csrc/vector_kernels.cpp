#include "vector_kernels.h"

#include <atomic>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace huatuo {
namespace {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HUATUO_WIDE_KERNELS 1

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,popcnt,bmi2,prefer-vector-width=512")
namespace avx512 {
constexpr int kBytes = 64;
constexpr const char* kName = "avx512";
typedef uint64_t Product __attribute__((vector_size(64)));
inline __attribute__((always_inline)) Product multiply_low(Product a, Product b) {
  return (Product)_mm512_maskz_mul_epu32((__mmask8)0xFF, (__m512i)a, (__m512i)b);  // the plain form warns
}
inline __attribute__((always_inline)) Product sum_bytes(Product a) {
  return (Product)_mm512_sad_epu8((__m512i)a, _mm512_setzero_si512());
}
inline __attribute__((always_inline)) bool any_set(Product a) {
  return _mm512_test_epi64_mask((__m512i)a, (__m512i)a) != 0;
}
#include "vector_kernels.inc"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,popcnt,bmi2")
namespace avx2 {
constexpr int kBytes = 32;
constexpr const char* kName = "avx2";
typedef uint64_t Product __attribute__((vector_size(32)));
inline __attribute__((always_inline)) Product multiply_low(Product a, Product b) {
  return (Product)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
inline __attribute__((always_inline)) Product sum_bytes(Product a) {
  return (Product)_mm256_sad_epu8((__m256i)a, _mm256_setzero_si256());
}
inline __attribute__((always_inline)) bool any_set(Product a) {
  return !_mm256_testz_si256((__m256i)a, (__m256i)a);
}
#include "vector_kernels.inc"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace base {
constexpr int kBytes = 16;
constexpr const char* kName = "base";
typedef uint64_t Product __attribute__((vector_size(16)));
inline __attribute__((always_inline)) Product multiply_low(Product a, Product b) {
#if defined(__x86_64__)
  return (Product)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFull) * (b & 0xFFFFFFFFull);
#endif
}
inline __attribute__((always_inline)) Product sum_bytes(Product a) {
#if defined(__x86_64__)
  return (Product)_mm_sad_epu8((__m128i)a, _mm_setzero_si128());
#else
  a += a >> 32;
  a += a >> 16;
  return (a + (a >> 8)) & 0xFF;  // sums below 256: at most 64 ones
#endif
}
inline __attribute__((always_inline)) bool any_set(Product a) { return (a[0] | a[1]) != 0; }
#include "vector_kernels.inc"
}  // namespace base

const VectorKernels* find(const char* name) {
#ifdef HUATUO_WIDE_KERNELS
  if (!__builtin_cpu_supports("popcnt") || !__builtin_cpu_supports("bmi2")) name = "base";
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return &avx512::kKernels;
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return &avx2::kKernels;
#endif
  return std::strcmp(name, "base") == 0 ? &base::kKernels : nullptr;
}

const VectorKernels* widest() {
  for (const char* name : {"avx512", "avx2"})
    if (const VectorKernels* kernels = find(name)) return kernels;
  return &base::kKernels;
}

std::atomic<const VectorKernels*>& in_use() {
  static std::atomic<const VectorKernels*> kernels{widest()};
  return kernels;
}

}  // namespace

const VectorKernels* vector_kernels() { return in_use().load(std::memory_order_relaxed); }

uint64_t count_ones(const Sequence& sequence, uint32_t block, int64_t blocks) {
  return vector_kernels()->count_ones(sequence, block, blocks);
}

void fill(const Sequence& sequence, uint32_t block, int blocks, uint32_t* out) {
  vector_kernels()->fill(sequence, block, blocks, out);
}

bool use_vector_kernels(const char* name) {
  const VectorKernels* kernels = find(name);
  if (kernels != nullptr) in_use().store(kernels);
  return kernels != nullptr;
}

}  // namespace huatuo
