// The inner loops of the order as SIMD code. One build holds each loop for several instruction sets, and the
// widest one that the running CPU has is taken. Whole-number arithmetic: every path gives the same bytes.
#pragma once

#include <cstdint>

#include "order_law.h"

namespace huatuo {

constexpr int kLanes = 16;         // 32-bit lanes of the widest path; counts are padded to a multiple of it
constexpr int kBatch = 512;        // most numbers or documents of one call
constexpr int kGroup = 32;         // most shares of one call of the binomials below
constexpr int kTinyCount = 49;     // most draws of a share in `tiny_binomials`, which reads one block a share
constexpr int kShortCount = 2000;  // most draws of a share in `short_binomials`

// Blocks that a binomial of so many trials hardly ever exceeds: it reads 2 bits a trial, give or take a few.
constexpr int short_blocks(uint32_t count) { return int((2 * count + count / 8 + 24 + 127) / 128); }
constexpr int kMostShortBlocks = short_blocks(kShortCount);
static_assert(short_blocks(kTinyCount) == 1 && short_blocks(kTinyCount + 1) == 2);

struct VectorKernels {
  const char* name;
  // Ones in the first `blocks` blocks from `block` on; `blocks` a multiple of 8.
  uint64_t (*count_ones)(const Sequence& sequence, uint32_t block, int64_t blocks);
  // Numbers of `blocks` blocks from `block` on, in order, into out [4 * blocks]; `blocks` a multiple of 8.
  void (*fill)(const Sequence& sequence, uint32_t block, int blocks, uint32_t* out);
  // Binomials of up to kGroup shares of one cell: successes[i] of counts[i] trials with probabilities[i] from
  // the sequence of sources[i]; -1 where it needs more numbers than were made. Counts 1 to kTinyCount, a
  // share a lane.
  void (*tiny_binomials)(const Sequence& cell, const uint32_t* sources, const uint32_t* counts,
                         const uint64_t* probabilities, int size, int64_t* successes);
  // The same for counts 1 to kShortCount, one share after the other.
  void (*short_binomials)(const Sequence& cell, const uint32_t* sources, const uint32_t* counts,
                          const uint64_t* probabilities, int size, int64_t* successes);
  // Of order_law.h, compiled for processors that count ones in one instruction.
  int64_t (*binomial)(const Sequence& sequence, int64_t trials, uint64_t probability);
  void (*place_specials)(Reader& random, Special* specials, int count, int64_t regular);
  // Shuffle partners for the places last, last - 1, …; true when one of them may need Lemire's rejection.
  // Reads and writes whole vectors.
  bool (*partners)(const uint32_t* numbers, uint32_t last, int count, uint32_t* out);
  // One pass of a Feistel network over the places [place, place + count): feistel_32 for n <= 2^31,
  // feistel_64 above. True when an answer may not be below n.
  bool (*feistel_32)(const Feistel& f, uint64_t place, int count, uint32_t* out);
  bool (*feistel_64)(const Feistel& f, uint64_t place, int count, uint64_t* out);
};

// The kernels in use: the widest that this CPU has, unless a test has chosen others.
const VectorKernels* vector_kernels();

// Choose the instruction set ("avx512", "avx2", "base"); false where the CPU lacks it. For tests and
// benchmarks.
bool use_vector_kernels(const char* name);

}  // namespace huatuo
