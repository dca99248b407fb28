// The priority order: a plan of the exponential race, and any range of draws from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "order_law.h"

namespace huatuo {

// What is drawn (order_draws.py), one entry a source.
struct OrderInputs {
  std::vector<int64_t> num_documents, num_draws, first_draw;
  std::vector<uint64_t> permutation_seeds;
  std::vector<uint32_t> permutation_streams;
  std::vector<int64_t> held_back_start, held_back;  // [S + 1] offsets into the held-back documents
  std::vector<int32_t> table, exponent;             // [S]
  std::vector<uint64_t> split, special;             // [T * kSplitEntries], [T * kSpecialEntries]
  uint64_t seed = 0;

  int num_sources() const { return int(num_documents.size()); }
};

// A cell of the time axis, [cell, cell + 1) * 2^(T - level).
struct Cell {
  uint64_t cell;
  int32_t level;
};

// Output arrays of the draws [start, stop): uint8 or uint16 sources, uint32 or uint64 documents.
struct OrderOutput {
  void* source;
  void* document;
  bool wide_source, wide_document;
};

class OrderPlan {
 public:
  // Cut the time axis into cells of a few ten thousand draws; `cell_draws` 0 chooses their size.
  OrderPlan(OrderInputs inputs, int num_threads, int64_t cell_draws);
  OrderPlan(OrderPlan&&) = default;

  int64_t total() const { return total_; }
  int64_t nbytes() const;
  int64_t num_cells() const { return int64_t(cells_.size()); }
  void order(int64_t start, int64_t stop, const OrderOutput& out, int num_threads) const;
  // Draws of each source among the first `position` ones, [S].
  std::vector<int64_t> counts_before(int64_t position) const;

  const OrderInputs& inputs() const { return inputs_; }
  const Hazard& hazard(uint32_t source) const { return hazards_[source]; }
  int64_t max_cell_draws() const { return max_cell_draws_; }
  int64_t max_specials() const { return max_specials_; }
  // For the GPU, whose unit of work is one cell that is ordered as a whole.
  const std::vector<Cell>& cells() const { return cells_; }
  const std::vector<int64_t>& before() const { return before_; }
  const std::vector<int64_t>& starts() const { return starts_; }
  // Append the documents of the first `draws` draws of a source of at most kSmallSource documents, held-back
  // ones aside.
  void small_documents(int source, int64_t draws, std::vector<uint16_t>& out) const;

 private:
  friend class Expansion;
  struct Share {  // draws of one source inside a cell, > 0
    uint32_t source;
    int64_t count;
  };
  void build(int num_threads, int64_t cell_draws);
  bool is_whole(int level, const Share* shares, size_t num_shares, int64_t total) const;
  // Draws of each share that arrive in the first half of the cell, into early [num_shares].
  void split(const Cell& cell, const Share* shares, size_t num_shares, int64_t* early) const;
  int64_t cell_of(int64_t position) const;

  OrderInputs inputs_;
  int64_t total_ = 0, max_cell_draws_ = 0, max_specials_ = 0;
  std::vector<Hazard> hazards_;  // [S], pointing into inputs_
  std::vector<Cell> cells_;      // [P] in time order
  std::vector<int64_t> starts_;  // [P + 1] draws before each cell
  std::vector<int64_t> before_;  // [P + 1, S] draws of each source before each cell
};

// Order on the GPU with the same bytes (blend_order.cu); false with the reason where that is not possible.
bool order_on_gpu(const OrderPlan& plan, int64_t start, int64_t stop, const OrderOutput& out,
                  std::string& reason, double& kernel_seconds);

}  // namespace huatuo
