// Philox4x32-10 (Salmon et al., SC11): random numbers as a pure function of (key, counter), the same on CPU
// and GPU.
//
// The counter of a block is {block number, level << 20 | stream, cell low, cell high}: every tree node,
// source and purpose has its own sequence, so any part of the order can be computed alone.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HUATUO_HD __host__ __device__ __forceinline__
#else
#define HUATUO_HD inline __attribute__((always_inline))
#endif

namespace huatuo {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

HUATUO_HD uint32_t mulhi32(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }

// One of the sequences of random numbers that a seed has.
struct Sequence {
  uint32_t key0, key1;  // the seed
  uint32_t c1, c2, c3;  // which sequence: see the head of this file
  HUATUO_HD Sequence(uint64_t seed, uint32_t level, uint32_t stream, uint64_t cell)
      : key0(uint32_t(seed)),
        key1(uint32_t(seed >> 32)),
        c1(level << 20 | stream),
        c2(uint32_t(cell)),
        c3(uint32_t(cell >> 32)) {}
};

// Four 32-bit numbers: block `block` of a sequence.
HUATUO_HD void philox(const Sequence& s, uint32_t block, uint32_t out[4]) {
  uint32_t x0 = block, x1 = s.c1, x2 = s.c2, x3 = s.c3, k0 = s.key0, k1 = s.key1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t h0 = mulhi32(kPhiloxM0, x0), l0 = kPhiloxM0 * x0;
    const uint32_t h1 = mulhi32(kPhiloxM1, x2), l1 = kPhiloxM1 * x2;
    x0 = h1 ^ x1 ^ k0;
    x1 = l1;
    x2 = h0 ^ x3 ^ k1;
    x3 = l0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

}  // namespace huatuo
