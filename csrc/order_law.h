// The law of the order below the level of arrays: what is decided by which random number. Shared by CPU and
// GPU.
//
// megatron_huatuo/blend/order_reference.py says the same in Python, function by function; docs/blending.md
// explains it. Whole-number arithmetic only, so every compiler and device gives the same answer.
#pragma once

#include <cstdint>

#include "philox.h"

namespace huatuo {

constexpr uint32_t kSpecialStream = 0xFFFFF, kShuffleStream = 0xFFFFE;
constexpr uint32_t kPermutationLevel = 0xFFF;
constexpr int kLowestExponent = -66, kHighestExponent = 5, kHighestSpecialExponent = 0;
constexpr int kSplitEntries = kHighestExponent - kLowestExponent + 1;
constexpr int kSpecialEntries = kHighestSpecialExponent - kLowestExponent + 1;
constexpr int64_t kSmallSource = 1024;

HUATUO_HD int popcount64(uint64_t x) {
#ifdef __CUDA_ARCH__
  return __popcll(x);
#else  // without a special instruction, so that the code runs on every x86-64
  x = x - ((x >> 1) & 0x5555555555555555ull);
  x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
  return int((((x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Full) * 0x0101010101010101ull) >> 56);
#endif
}

HUATUO_HD uint64_t mulhi64(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// Blocks of random numbers that a Reader makes at once: the CPU's vectors are as quick with many as with one.
#ifdef __CUDA_ARCH__
constexpr int kReadAhead = 1;
#else
constexpr int kReadAhead = 16;
uint64_t count_ones(const Sequence& sequence, uint32_t block, int64_t blocks);   // in vector_kernels.cpp,
void fill(const Sequence& sequence, uint32_t block, int blocks, uint32_t* out);  // blocks % kReadAhead = 0
#endif

// Reads a sequence of random numbers from its start.
class Reader {
 public:
  HUATUO_HD explicit Reader(const Sequence& sequence) : sequence_(sequence) {}

  // The next whole word; bits that `heads` left over in the current one are skipped.
  HUATUO_HD uint64_t next64() {
    const uint64_t number = (position_ + 63) >> 6;
    position_ = (number + 1) << 6;
    return word(number);
  }

  // Uniform in [0, bound) without bias (Lemire 2019).
  HUATUO_HD uint64_t below64(uint64_t bound) {
    uint64_t number = next64();
    if (number * bound < bound) {
      const uint64_t threshold = (0ull - bound) % bound;
      while (number * bound < threshold) number = next64();
    }
    return mulhi64(number, bound);
  }

  // Ones among `coins` fair coins: the next bits, from the lowest of each word.
  HUATUO_HD int64_t heads(int64_t coins) {
    int64_t ones = 0;
    while (coins > 0) {
#ifndef __CUDA_ARCH__
      if (position_ % kGroupBits == 0 && coins >= int64_t(kGroupBits)) {  // whole groups need no memory
        const int64_t groups = coins / int64_t(kGroupBits);
        ones += int64_t(count_ones(sequence_, uint32_t(position_ / 128), groups * kReadAhead));
        position_ += uint64_t(groups) * kGroupBits;
        coins -= groups * int64_t(kGroupBits);
        continue;
      }
#endif
      const int64_t left = 64 - int64_t(position_ & 63), taken = coins < left ? coins : left;
      ones += popcount64(word(position_ >> 6) >> (position_ & 63) << (64 - taken));
      position_ += uint64_t(taken);
      coins -= taken;
    }
    return ones;
  }

  // How many of `trials` uniform 64-bit numbers are below `probability`: their bits are drawn only while they
  // matter.
  HUATUO_HD int64_t binomial(int64_t trials, uint64_t probability) {
    int64_t successes = 0, undecided = trials;
    for (; undecided > 0 && probability != 0; probability <<= 1) {
      const int64_t ones = heads(undecided);
      if (probability >> 63) {
        successes += undecided - ones;
        undecided = ones;
      } else {
        undecided -= ones;
      }
    }
    return successes;
  }

 private:
  static constexpr uint64_t kGroupBits = 128 * kReadAhead;

  HUATUO_HD uint64_t word(uint64_t number) {
    const uint64_t group = number / (2 * kReadAhead);
    if (group != loaded_) {
      loaded_ = group;
#ifdef __CUDA_ARCH__
      philox(sequence_, uint32_t(group), numbers_);
#else
      fill(sequence_, uint32_t(group * kReadAhead), kReadAhead, numbers_);
#endif
    }
    const uint32_t* pair = numbers_ + 2 * (number % (2 * kReadAhead));
    return pair[0] | uint64_t(pair[1]) << 32;
  }

  Sequence sequence_;
  uint64_t position_ = 0;    // in bits
  uint64_t loaded_ = ~0ull;  // group of blocks in numbers_
  uint32_t numbers_[4 * kReadAhead];
};

// Reads a sequence as 32-bit numbers, one by one.
class NumberReader {
 public:
  HUATUO_HD explicit NumberReader(const Sequence& sequence) : sequence_(sequence) {}

  HUATUO_HD uint32_t next32() {
    if ((position_ & 3) == 0) philox(sequence_, uint32_t(position_ >> 2), block_);
    return block_[position_++ & 3];
  }

  // Uniform in [0, bound) without bias.
  HUATUO_HD uint32_t below32(uint32_t bound) {
    uint64_t product = uint64_t(next32()) * bound;
    if (uint32_t(product) < bound) {
      const uint32_t threshold = (0u - bound) % bound;
      while (uint32_t(product) < threshold) product = uint64_t(next32()) * bound;
    }
    return uint32_t(product >> 32);
  }

 private:
  Sequence sequence_;
  uint64_t position_ = 0;
  uint32_t block_[4];
};

// The probability tables of one priority (order_tables.py), and the exponent of half a root cell's hazard.
struct Hazard {
  const uint64_t* split;
  const uint64_t* special;
  int32_t root_exponent;

  HUATUO_HD int exponent(int level) const { return root_exponent - level; }
  HUATUO_HD uint64_t split_at(int exponent) const { return split[clamp(exponent)]; }
  HUATUO_HD uint64_t special_at(int exponent) const { return special[clamp(exponent)]; }
  HUATUO_HD static int clamp(int exponent) {
    return exponent < kLowestExponent ? 0 : exponent - kLowestExponent;
  }
};

// Arrival time of a special document inside its cell, in 2^-64 of the cell: fair bits, at least one forced to
// 0.
HUATUO_HD uint64_t special_time(Reader& random, const Hazard& hazard, int exponent) {
  uint64_t time = 0;
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t special = hazard.special_at(exponent - bit);
    if (special == 0) return time | random.next64() >> bit;
    const uint64_t forced = 2 * hazard.split_at(exponent - bit);  // minus 2^64, which wraps away
    if (random.below64(special) >= forced) {
      time |= random.next64() >> 63 << (63 - bit);
    } else if (random.next64() >= hazard.special_at(exponent - bit - 1) && bit < 63) {
      return time | random.next64() >> (bit + 1);
    }
  }
  return time;
}

struct Special {
  uint64_t time;
  uint32_t source;
  uint32_t place;  // regular documents before it
};

// Give each special document (in order of time) its place among `regular` shuffled ones. Halves the cell
// while both kinds are in the same half; the left half first, as the recursion of the reference does. Only
// where specials lie in both halves, the right one waits.
HUATUO_HD void place_specials(Reader& random, Special* specials, int count, int64_t regular) {
  struct Part {
    int first, last, bit;
    int64_t regular, before;
  };
  Part waiting[66];
  int depth = 0;
  if (count > 0) waiting[depth++] = {0, count, 0, regular, 0};
  while (depth > 0) {
    Part part = waiting[--depth];
    for (; part.regular > 0 && part.bit < 64; ++part.bit) {
      const int64_t late = random.heads(part.regular), early = part.regular - late;
      int middle = part.first;
      while (middle < part.last && !(specials[middle].time >> (63 - part.bit) & 1)) ++middle;
      const bool all_late = middle == part.first;
      if (!all_late && middle < part.last)
        waiting[depth++] = {middle, part.last, part.bit + 1, late, part.before + early};
      part.last = all_late ? part.last : middle;
      part.before += all_late ? early : 0;
      part.regular = all_late ? late : early;
    }
    for (int i = part.first; i < part.last; ++i) specials[i].place = uint32_t(part.before);
  }
}

// One document network or table of a (source, epoch): the keys of the Feistel rounds.
struct Feistel {
  uint64_t n;
  uint32_t rows, columns;
  int rounds;
  uint32_t keys[16];
};

HUATUO_HD uint32_t feistel_mix(uint32_t half, uint32_t key0, uint32_t key1) {
  uint32_t word = half + key0;
  word = (word ^ word >> 16) * 0x7FEB352Du;
  return (word ^ word >> 15 ^ key1) * 0x846CA68Bu;
}

// x + y mod m for x, y < m < 2^31: the smaller of two unsigned numbers, so that it vectorises.
HUATUO_HD uint32_t add_modulo(uint32_t x, uint32_t y, uint32_t m) {
  const uint32_t sum = x + y, less = sum - m;
  return sum < less ? sum : less;
}

HUATUO_HD uint64_t feistel_once(const Feistel& f, uint64_t place) {
  uint32_t row = uint32_t(place / f.columns), column = uint32_t(place % f.columns);
  for (int round = 0; round < f.rounds; round += 2) {
    row = add_modulo(row, mulhi32(feistel_mix(column, f.keys[2 * round], f.keys[2 * round + 1]), f.rows),
                     f.rows);
    column =
        add_modulo(column, mulhi32(feistel_mix(row, f.keys[2 * round + 2], f.keys[2 * round + 3]), f.columns),
                   f.columns);
  }
  return uint64_t(row) * f.columns + column;
}

// Document at `place` of the permutation, by walking until the network's answer is in range.
HUATUO_HD uint64_t feistel(const Feistel& f, uint64_t place) {
  do {
    place = feistel_once(f, place);
  } while (place >= f.n);
  return place;
}

HUATUO_HD Feistel make_feistel(uint64_t n, uint64_t seed, uint32_t stream, uint64_t epoch) {
  Feistel f;
  f.n = n;
  uint64_t root = 0;  // ceil(sqrt(n)), bit by bit
  for (int bit = 31; bit >= 0; --bit) {
    const uint64_t trial = root | 1ull << bit;
    if (trial * trial <= n - 1) root = trial;
  }
  f.rows = uint32_t(root + 1);
  f.columns = uint32_t((n + f.rows - 1) / f.rows);
  f.rounds = n <= 65536 ? 8 : 6;
  NumberReader random(Sequence(seed, kPermutationLevel, stream, epoch));
  for (int i = 0; i < 2 * f.rounds; ++i) f.keys[i] = random.next32();
  return f;
}

}  // namespace huatuo
