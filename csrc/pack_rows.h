// Packing: documents in drawing order into rows of a fixed number of tokens, with a bounded look-ahead.
#pragma once

#include <cstdint>
#include <vector>

namespace huatuo {

class RowPacker {
 public:
  RowPacker(int64_t seq_length, int64_t window);

  // Add the next documents; writes the draw numbers that are placed by now to `order` (room for pending() +
  // count). Row starts (numbers of entries) are appended to `row_start`. Returns how many draws were placed.
  template <typename Length>
  int64_t add(const Length* lengths, int64_t count, int64_t* order, std::vector<int64_t>& row_start);
  // No more documents: place what is left, and close the last row.
  int64_t finish(int64_t* order, std::vector<int64_t>& row_start);

  int64_t pending() const { return added_ - placed_; }

 private:
  void insert(int64_t length);
  void place_one(int64_t*& order, std::vector<int64_t>& row_start);
  int64_t take(int64_t length);
  int64_t longest_up_to(int64_t length) const;

  int64_t seq_length_, window_, added_ = 0, placed_ = 0, oldest_ = 0, room_ = 0;
  int64_t mask_;
  std::vector<int64_t> length_of_;     // [ring] length of a pending draw, 0 when it is placed
  std::vector<int64_t> next_;          // [ring] next pending draw of the same length
  std::vector<int64_t> first_, last_;  // [seq_length + 1] pending draws of each length, oldest first
  std::vector<std::vector<uint64_t>>
      bitmap_;  // which lengths are pending; each level has a bit for a word of the one below
};

}  // namespace huatuo
