#include "pack_rows.h"

#include <algorithm>

#include "check.h"

namespace huatuo {

RowPacker::RowPacker(int64_t seq_length, int64_t window) : seq_length_(seq_length), window_(window) {
  HUATUO_CHECK(seq_length >= 1 && seq_length < 1ll << 31,
               "wrong seq_length: got " << seq_length << ", need 1 to 2^31 - 1");
  HUATUO_CHECK(window >= 1 && window <= 1ll << 30, "wrong window: got " << window << ", need 1 to 2^30");
  int64_t ring = 4;  // pending draws span less than 2 * window numbers
  while (ring < 2 * window + 2) ring *= 2;
  mask_ = ring - 1;
  length_of_.assign(size_t(ring), 0);
  next_.assign(size_t(ring), -1);
  first_.assign(size_t(seq_length + 1), -1);
  last_.assign(size_t(seq_length + 1), -1);
  for (int64_t size = seq_length + 1;;) {
    size = (size + 63) / 64;
    bitmap_.emplace_back(size_t(size), 0);
    if (size == 1) break;
  }
}

void RowPacker::insert(int64_t length) {
  length = std::min(length, seq_length_);
  const int64_t draw = added_++;
  length_of_[size_t(draw & mask_)] = length;
  next_[size_t(draw & mask_)] = -1;
  if (first_[size_t(length)] >= 0) {
    next_[size_t(last_[size_t(length)] & mask_)] = draw;
  } else {
    first_[size_t(length)] = draw;
    int64_t bit = length;
    for (auto& level : bitmap_) {
      level[size_t(bit >> 6)] |= 1ull << (bit & 63);
      bit >>= 6;
    }
  }
  last_[size_t(length)] = draw;
}

// Largest pending length <= `length`, or 0.
int64_t RowPacker::longest_up_to(int64_t length) const {
  int64_t bit = length;
  for (size_t level = 0; level < bitmap_.size(); ++level) {
    const uint64_t below = bitmap_[level][size_t(bit >> 6)] & (~0ull >> (63 - (bit & 63)));
    if (below != 0) {
      bit = (bit >> 6 << 6) + 63 - __builtin_clzll(below);
      while (level-- > 0) bit = bit * 64 + 63 - __builtin_clzll(bitmap_[level][size_t(bit)]);
      return bit;
    }
    bit >>= 6;
    if (bit == 0) return 0;
    --bit;
  }
  return 0;
}

// Remove the oldest pending draw of a length.
int64_t RowPacker::take(int64_t length) {
  const int64_t draw = first_[size_t(length)];
  first_[size_t(length)] = next_[size_t(draw & mask_)];
  length_of_[size_t(draw & mask_)] = 0;
  if (first_[size_t(length)] < 0) {
    int64_t bit = length;
    for (auto& level : bitmap_) {
      if ((level[size_t(bit >> 6)] &= ~(1ull << (bit & 63))) != 0) break;
      bit >>= 6;
    }
  }
  return draw;
}

// The oldest draw, while it fits and leaves room for another one or none at all; else the longest that fits.
// A new row when none does. A draw that may wait no more is placed whatever it leaves.
void RowPacker::place_one(int64_t*& order, std::vector<int64_t>& row_start) {
  while (length_of_[size_t(oldest_ & mask_)] == 0) ++oldest_;
  int64_t length = length_of_[size_t(oldest_ & mask_)];
  const int64_t rest = room_ - length;
  if (rest < 0 || (rest > 0 && longest_up_to(rest) == 0)) {
    const bool overdue = placed_ - oldest_ == window_ - 1;
    const int64_t fitting = overdue || room_ == 0 ? 0 : longest_up_to(room_);
    if (fitting > 0) {
      length = fitting;
    } else if (rest < 0) {
      row_start.push_back(placed_);
      room_ = seq_length_;
    }
  }
  room_ -= length;
  *order++ = take(length);
  ++placed_;
}

template <typename Length>
int64_t RowPacker::add(const Length* lengths, int64_t count, int64_t* order,
                       std::vector<int64_t>& row_start) {
  int64_t* const begin = order;
  for (int64_t i = 0; i < count; ++i) {
    HUATUO_CHECK(lengths[i] >= 1, "wrong length of document " << added_ << ": got " << int64_t(lengths[i])
                                                              << " tokens, need at least 1");
    insert(int64_t(lengths[i]));
    if (added_ - placed_ >= window_) place_one(order, row_start);
  }
  return order - begin;
}

int64_t RowPacker::finish(int64_t* order, std::vector<int64_t>& row_start) {
  int64_t* const begin = order;
  while (placed_ < added_) place_one(order, row_start);
  row_start.push_back(placed_);
  return order - begin;
}

template int64_t RowPacker::add(const int32_t*, int64_t, int64_t*, std::vector<int64_t>&);
template int64_t RowPacker::add(const int64_t*, int64_t, int64_t*, std::vector<int64_t>&);

}  // namespace huatuo
