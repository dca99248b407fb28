#include "blend_order.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "check.h"
#include "vectorised.h"

namespace huatuo {
namespace {

constexpr int kLanes = 16;
constexpr int kBatch = 512;  // numbers or documents of one vectorised call

// Blocks [block, block + blocks) of a sequence; `blocks` a multiple of kLanes.
HUATUO_CLONES void philox_fill(const Sequence& s, uint32_t block, int blocks, uint32_t* out) {
  for (int b = 0; b < blocks; b += kLanes) {
    uint32_t x0[kLanes], x1[kLanes], x2[kLanes], x3[kLanes];
    for (int i = 0; i < kLanes; ++i) x0[i] = block + b + i, x1[i] = s.c1, x2[i] = s.c2, x3[i] = s.c3;
    uint32_t k0 = s.key0, k1 = s.key1;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      for (int i = 0; i < kLanes; ++i) {
        const uint64_t p0 = uint64_t(kPhiloxM0) * x0[i], p1 = uint64_t(kPhiloxM1) * x2[i];
        x0[i] = uint32_t(p1 >> 32) ^ x1[i] ^ k0;
        x1[i] = uint32_t(p1);
        x2[i] = uint32_t(p0 >> 32) ^ x3[i] ^ k1;
        x3[i] = uint32_t(p0);
      }
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    for (int i = 0; i < kLanes; ++i) {
      out[4 * (b + i)] = x0[i], out[4 * (b + i) + 1] = x1[i];
      out[4 * (b + i) + 2] = x2[i], out[4 * (b + i) + 3] = x3[i];
    }
  }
}

HUATUO_CLONES uint64_t popcount_words(const uint64_t* words, int count) {
  uint64_t ones = 0;
  for (int i = 0; i < count; ++i) ones += uint64_t(__builtin_popcountll(words[i]));
  return ones;
}

// Shuffle partners for the places last, last - 1, … ; true when one of them may need Lemire's rejection.
HUATUO_CLONES bool partners(const uint32_t* numbers, uint32_t last, int count, uint32_t* out) {
  uint32_t doubtful = 0;
  for (int i = 0; i < count; ++i) {
    const uint32_t bound = last + 1 - uint32_t(i);
    const uint64_t product = uint64_t(numbers[i]) * bound;
    out[i] = uint32_t(product >> 32);
    doubtful |= uint32_t(uint32_t(product) < bound);
  }
  return doubtful != 0;
}

// Feistel rounds over kBatch (row, column) pairs in place.
template <int kRounds>
inline __attribute__((always_inline)) void feistel_rounds(const Feistel& f, uint32_t* rows, uint32_t* columns, int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t row = rows[i], column = columns[i];
    for (int r = 0; r < kRounds; r += 2) {
      row = add_modulo(row, mulhi32(feistel_mix(column, f.keys[2 * r], f.keys[2 * r + 1]), f.rows), f.rows);
      column = add_modulo(column, mulhi32(feistel_mix(row, f.keys[2 * r + 2], f.keys[2 * r + 3]), f.columns), f.columns);
    }
    rows[i] = row, columns[i] = column;
  }
}

HUATUO_CLONES void feistel_batch_6(const Feistel& f, uint32_t* rows, uint32_t* columns, int count) {
  feistel_rounds<6>(f, rows, columns, count);
}

HUATUO_CLONES void feistel_batch_10(const Feistel& f, uint32_t* rows, uint32_t* columns, int count) {
  feistel_rounds<10>(f, rows, columns, count);
}

HUATUO_CLONES bool compose_32(const uint32_t* rows, const uint32_t* columns, uint32_t width, uint32_t n, int count,
                              uint32_t* out) {
  uint32_t outside = 0;
  for (int i = 0; i < count; ++i) {
    out[i] = rows[i] * width + columns[i];
    outside |= uint32_t(out[i] >= n);
  }
  return outside != 0;
}

HUATUO_CLONES bool compose_64(const uint32_t* rows, const uint32_t* columns, uint32_t width, uint64_t n, int count,
                              uint64_t* out) {
  uint64_t outside = 0;
  for (int i = 0; i < count; ++i) {
    out[i] = uint64_t(rows[i]) * width + columns[i];
    outside |= uint64_t(out[i] >= n);
  }
  return outside != 0;
}

// Documents at the places [place, place + count) of a Feistel permutation.
template <typename Document>
void feistel_range(const Feistel& f, uint64_t place, int64_t count, Document* out) {
  alignas(64) uint32_t rows[kBatch], columns[kBatch];
  alignas(64) uint32_t narrow[kBatch];
  alignas(64) uint64_t wide[kBatch];
  uint32_t row = uint32_t(place / f.columns), column = uint32_t(place % f.columns);
  while (count > 0) {
    const int batch = int(std::min<int64_t>(count, kBatch));
    for (int filled = 0; filled < batch;) {
      const int run = int(std::min<int64_t>(batch - filled, f.columns - column));
      for (int i = 0; i < run; ++i) rows[filled + i] = row, columns[filled + i] = column + uint32_t(i);
      filled += run;
      column += uint32_t(run);
      if (column == f.columns) column = 0, ++row;
    }
    const int padded = (batch + kLanes - 1) / kLanes * kLanes;
    for (int i = batch; i < padded; ++i) rows[i] = columns[i] = 0;
    (f.rounds == 6 ? feistel_batch_6 : feistel_batch_10)(f, rows, columns, padded);
    if (f.n <= 1ull << 31) {
      if (compose_32(rows, columns, f.columns, uint32_t(f.n), padded, narrow))
        for (int i = 0; i < batch; ++i)
          if (narrow[i] >= f.n) narrow[i] = uint32_t(feistel(f, narrow[i]));
      for (int i = 0; i < batch; ++i) out[i] = Document(narrow[i]);
    } else {
      if (compose_64(rows, columns, f.columns, f.n, padded, wide))
        for (int i = 0; i < batch; ++i)
          if (wide[i] >= f.n) wide[i] = feistel(f, wide[i]);
      for (int i = 0; i < batch; ++i) out[i] = Document(wide[i]);
    }
    out += batch;
    count -= batch;
  }
}

// Fisher-Yates from the end, the same numbers as Reader::below32 gives one by one.
template <typename Item>
void shuffle(Item* items, int64_t count, const Sequence& sequence) {
  alignas(64) uint32_t numbers[kBatch + 4 * kLanes], others[kBatch];
  uint64_t position = 0;
  for (int64_t last = count - 1; last > 0;) {
    const int steps = int(std::min<int64_t>(last, kBatch));
    const int skip = int(position & 3);
    const int blocks = ((skip + steps + 3) / 4 + kLanes - 1) / kLanes * kLanes;
    philox_fill(sequence, uint32_t(position >> 2), blocks, numbers);
    if (!partners(numbers + skip, uint32_t(last), steps, others)) {
      for (int i = 0; i < steps; ++i) std::swap(items[last - i], items[others[i]]);
      position += uint64_t(steps);
      last -= steps;
      continue;
    }
    // About one number in a million: check it, and take further ones where it is rejected.
    const uint32_t bound = uint32_t(last + 1);
    const uint64_t product = uint64_t(numbers[skip]) * bound;
    ++position;
    if (uint32_t(product) < bound && uint32_t(product) < (0u - bound) % bound) continue;
    std::swap(items[last], items[product >> 32]);
    --last;
  }
}

// Run task(i) for i in [0, count) on several threads; the first exception is thrown again here.
void parallel_for(int64_t count, int num_threads, const std::function<void(int64_t, int)>& task) {
  num_threads = int(std::min<int64_t>(num_threads, count));
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&](int thread) {
    try {
      for (int64_t i; (i = next.fetch_add(1)) < count;) task(i, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < num_threads; ++t) threads.emplace_back(work, t);
  work(0);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

// Permutations of the sources' current epochs, kept from cell to cell.
class Permutations {
 public:
  explicit Permutations(const OrderInputs& inputs) : inputs_(inputs), entries_(size_t(inputs.num_sources())) {}

  // Documents of the draws [draw, draw + count) of a source; draw counts from the first one of this order.
  template <typename Document>
  void documents(uint32_t source, int64_t draw, int64_t count, Document* out) {
    const int64_t held_start = inputs_.held_back_start[source];
    const int64_t held = inputs_.held_back_start[source + 1] - held_start;
    for (; count > 0 && draw < held; ++draw, --count) *out++ = Document(inputs_.held_back[size_t(held_start + draw)]);
    const int64_t n = inputs_.num_documents[source];
    for (int64_t k = inputs_.first_draw[source] + draw - held; count > 0;) {
      const int64_t place = k % n, run = std::min(count, n - place);
      const Entry& entry = entry_of(source, uint64_t(k / n));
      if (n <= kSmallSource) {
        for (int64_t i = 0; i < run; ++i) out[i] = Document(entry.table[size_t(place + i)]);
      } else {
        feistel_range(entry.feistel, uint64_t(place), run, out);
      }
      out += run, k += run, count -= run;
    }
  }

 private:
  struct Entry {
    uint64_t epoch = ~0ull;
    Feistel feistel;
    std::vector<uint16_t> table;
  };

  const Entry& entry_of(uint32_t source, uint64_t epoch) {
    Entry& entry = entries_[source];
    if (entry.epoch == epoch) return entry;
    const int64_t n = inputs_.num_documents[source];
    const uint64_t seed = inputs_.permutation_seeds[source];
    const uint32_t stream = inputs_.permutation_streams[source];
    if (n <= kSmallSource) {
      entry.table.resize(size_t(n));
      for (int64_t i = 0; i < n; ++i) entry.table[size_t(i)] = uint16_t(i);
      shuffle(entry.table.data(), n, Sequence(seed, kPermutationLevel, stream, epoch));
    } else {
      entry.feistel = make_feistel(uint64_t(n), seed, stream, epoch);
    }
    entry.epoch = epoch;
    return entry;
  }

  const OrderInputs& inputs_;
  std::vector<Entry> entries_;
};

}  // namespace

uint64_t count_ones(const Sequence& sequence, uint64_t first_word, uint64_t num_words) {
  alignas(64) uint32_t numbers[4 * kBatch];
  uint64_t ones = 0;
  while (num_words > 0) {
    const uint64_t skip = first_word & 1;
    const int words = int(std::min<uint64_t>(num_words, 2 * kBatch - skip));
    const int blocks = (int((skip + uint64_t(words) + 1) / 2) + kLanes - 1) / kLanes * kLanes;
    philox_fill(sequence, uint32_t(first_word >> 1), blocks, numbers);
    uint64_t aligned[2 * kBatch];
    std::memcpy(aligned, numbers + 2 * skip, size_t(words) * 8);
    ones += popcount_words(aligned, words);
    first_word += uint64_t(words);
    num_words -= uint64_t(words);
  }
  return ones;
}

OrderPlan::OrderPlan(OrderInputs inputs, int num_threads, int64_t cell_draws) : inputs_(std::move(inputs)) {
  const int sources = inputs_.num_sources();
  int lowest = INT32_MAX;
  for (int i = 0; i < sources; ++i) {
    total_ += inputs_.num_draws[size_t(i)];
    if (inputs_.num_draws[size_t(i)] > 0) lowest = std::min(lowest, inputs_.exponent[size_t(i)]);
  }
  for (int i = 0; i < sources; ++i) root_exponent_.push_back(lowest == INT32_MAX ? 0 : inputs_.exponent[size_t(i)] + 5 - lowest);
  max_cell_draws_ = 8192;
  while (max_cell_draws_ < 64 * int64_t(sources) && max_cell_draws_ < 1 << 17) max_cell_draws_ *= 2;
  build(num_threads, cell_draws);
}

int64_t OrderPlan::nbytes() const {
  return int64_t(cells_.size() * sizeof(Cell) + starts_.size() * 8 + before_.size() * 8);
}

Hazard OrderPlan::hazard(int source) const {
  const size_t table = size_t(inputs_.table[size_t(source)]);
  return {&inputs_.split[table * kSplitEntries], &inputs_.special[table * kSpecialEntries],
          root_exponent_[size_t(source)]};
}

int64_t OrderPlan::split(const Cell& cell, uint32_t source, int64_t count) const {
  const Hazard h = hazard(int(source));
  const int exponent = h.exponent(cell.level);
  if (count == 0 || exponent > kHighestExponent) return count;
  return Reader(Sequence(inputs_.seed, uint32_t(cell.level), source, cell.cell)).binomial(count, h.split_at(exponent));
}

bool OrderPlan::is_whole(int level, const Share* shares, size_t num_shares, int64_t total) const {
  if (total > max_cell_draws_) return false;
  uint64_t most = 0;
  for (size_t i = 0; i < num_shares; ++i) {
    const Hazard h = hazard(int(shares[i].source));
    const int exponent = h.exponent(level);
    if (exponent > kHighestSpecialExponent) return false;
    most = std::max(most, h.special_at(exponent));
  }
  return (static_cast<unsigned __int128>(most) * uint64_t(total)) <= static_cast<unsigned __int128>(kMaxSpecials) << 64;
}

// Level by level, so that every level's splits run in parallel; the cells stay in time order.
void OrderPlan::build(int num_threads, int64_t cell_draws) {
  const size_t sources = size_t(inputs_.num_sources());
  if (cell_draws == 0) {
    // Before-counts of all cells together stay below about 64 MiB.
    cell_draws = std::max<int64_t>(1 << 16, max_cell_draws_);
    while (total_ / cell_draws * 2 * int64_t(sources) * 8 > 64 << 20) cell_draws *= 2;
  }
  struct Part {
    Cell cell;
    int64_t total;
    bool done;
    std::vector<int64_t> counts;
  };
  std::vector<Part> parts;
  parts.push_back({{0, 0}, total_, false, inputs_.num_draws});
  std::vector<Share> shares(sources);
  for (bool open = true; open;) {
    open = false;
    std::vector<size_t> wanted;
    for (size_t p = 0; p < parts.size(); ++p) {
      Part& part = parts[p];
      if (part.done) continue;
      size_t present = 0;
      for (size_t i = 0; i < sources; ++i)
        if (part.counts[i] > 0) shares[present++] = {uint32_t(i), part.counts[i]};
      part.done = present <= 1 || part.total <= cell_draws || is_whole(part.cell.level, shares.data(), present, part.total);
      if (!part.done) wanted.push_back(p);
    }
    if (wanted.empty()) break;
    open = true;
    std::vector<std::vector<int64_t>> early(wanted.size(), std::vector<int64_t>(sources));
    int64_t work = 0;
    for (const size_t p : wanted) work += parts[p].total;
    const size_t stride = std::min<size_t>(sources, 16), groups = (sources + stride - 1) / stride;
    const auto split_group = [&](int64_t task, int) {
      const size_t w = size_t(task) / groups, group = size_t(task) % groups;
      for (size_t i = group; i < sources; i += groups) early[w][i] = split(parts[wanted[w]].cell, uint32_t(i), parts[wanted[w]].counts[i]);
    };
    parallel_for(int64_t(wanted.size() * groups), work > 1 << 18 ? num_threads : 1, split_group);
    std::vector<Part> next;
    next.reserve(parts.size() + wanted.size());
    for (size_t p = 0, w = 0; p < parts.size(); ++p) {
      if (w == wanted.size() || wanted[w] != p) {
        next.push_back(std::move(parts[p]));
        continue;
      }
      Part& part = parts[p];
      const Cell cell = part.cell;
      int64_t early_total = 0;
      for (size_t i = 0; i < sources; ++i) {
        early_total += early[w][i];
        part.counts[i] -= early[w][i];
      }
      if (early_total > 0) next.push_back({{2 * cell.cell, cell.level + 1}, early_total, false, std::move(early[w])});
      if (part.total > early_total)
        next.push_back({{2 * cell.cell + 1, cell.level + 1}, part.total - early_total, false, std::move(part.counts)});
      ++w;
    }
    parts = std::move(next);
  }
  starts_.assign(1, 0);
  before_.assign(sources, 0);
  before_.reserve((parts.size() + 1) * sources);
  for (const Part& part : parts) {
    cells_.push_back(part.cell);
    starts_.push_back(starts_.back() + part.total);
    for (size_t i = 0; i < sources; ++i) before_.push_back(before_[before_.size() - sources] + part.counts[i]);
  }
}

int64_t OrderPlan::cell_of(int64_t position) const {
  return std::upper_bound(starts_.begin(), starts_.end() - 1, position) - starts_.begin() - 1;
}

// Draws of one planned cell: goes down its tree, one thread, reusing its memory from cell to cell.
class Expansion {
 public:
  explicit Expansion(const OrderPlan& plan)
      : plan_(plan), permutations_(plan.inputs_), drawn_(size_t(plan.inputs_.num_sources())), cursor_(drawn_.size()) {}

  // Write the draws [start, stop) that lie in planned cell `index`; out is for draw number `origin`.
  template <typename Source, typename Document>
  void write(int64_t index, int64_t start, int64_t stop, int64_t origin, Source* source, Document* document) {
    begin(index, start, stop);
    descend(plan_.cells_[size_t(index)], 0, shares_.size(), [&](const Cell& cell, size_t first, size_t last, int64_t total) {
      const int64_t from = std::max<int64_t>(start_ - position_, 0), to = std::min(stop_ - position_, total);
      const int64_t offset = position_ + from - origin;
      if (last - first == 1) {
        const Share share = shares_[first];
        std::fill(source + offset, source + offset + (to - from), Source(share.source));
        permutations_.documents(share.source, drawn_[share.source] + from, to - from, document + offset);
      } else {
        order_cell<Source>(cell, first, last, total);
        fetch<Document>(first, last, total);
        emit<Source, Document>(from, to, source + offset, document + offset);
      }
    });
  }

  // Draws of each source before `position`, which lies in planned cell `index`.
  std::vector<int64_t> counts_before(int64_t index, int64_t position) {
    begin(index, position, position + 1);
    descend(plan_.cells_[size_t(index)], 0, shares_.size(), [&](const Cell& cell, size_t first, size_t last, int64_t total) {
      const int64_t inside = position - position_;
      if (last - first == 1) {
        drawn_[shares_[first].source] += inside;
      } else {
        order_cell<uint16_t>(cell, first, last, total);
        for (int64_t j = 0; j < inside; ++j) ++drawn_[reinterpret_cast<uint16_t*>(sources_.data())[j]];
      }
      found_ = drawn_;
    });
    return found_;
  }

 private:
  using Share = OrderPlan::Share;

  void begin(int64_t index, int64_t start, int64_t stop) {
    const size_t sources = drawn_.size();
    const int64_t* before = &plan_.before_[size_t(index) * sources];
    shares_.clear();
    for (size_t i = 0; i < sources; ++i) {
      drawn_[i] = before[i];
      if (before[sources + i] > before[i]) shares_.push_back({uint32_t(i), before[sources + i] - before[i]});
    }
    position_ = plan_.starts_[size_t(index)];
    start_ = start;
    stop_ = stop;
  }

  // Visit, in time order, the cells below `cell` that are ordered as a whole and meet [start_, stop_).
  // The shares of `cell` are shares_[first, last); those of deeper cells are pushed behind them.
  template <typename Visit>
  void descend(const Cell& cell, size_t first, size_t last, const Visit& visit) {
    int64_t total = 0;
    for (size_t s = first; s < last; ++s) total += shares_[s].count;
    if (total == 0 || position_ >= stop_) return;
    const bool inside = position_ + total > start_;
    if (!inside || last - first == 1 || plan_.is_whole(cell.level, &shares_[first], last - first, total)) {
      if (inside) visit(cell, first, last, total);
      for (size_t s = first; s < last; ++s) drawn_[shares_[s].source] += shares_[s].count;
      position_ += total;
      return;
    }
    for (int half = 0; half < 2; ++half) {
      const size_t child = shares_.size();
      if (half == 0) {
        for (size_t s = first; s < last; ++s) {
          const int64_t early = plan_.split(cell, shares_[s].source, shares_[s].count);
          shares_[s].count -= early;
          if (early > 0) shares_.push_back({shares_[s].source, early});
        }
      } else {
        for (size_t s = first; s < last; ++s)
          if (shares_[s].count > 0) shares_.push_back(shares_[s]);
      }
      descend({2 * cell.cell + uint64_t(half), cell.level + 1}, child, shares_.size(), visit);
      shares_.resize(child);
    }
  }

  // Source of every draw of a cell that is ordered as a whole, into sources_.
  template <typename Source>
  void order_cell(const Cell& cell, size_t first, size_t last, int64_t total) {
    sources_.resize(std::max(sources_.size(), size_t(total) * sizeof(Source)));
    Source* out = reinterpret_cast<Source*>(sources_.data());
    draw_specials(cell, first, last, total);
    Source* end = out;
    size_t taken = 0;
    std::sort(by_source_.begin(), by_source_.end());
    for (size_t s = first; s < last; ++s) {
      int64_t regular = shares_[s].count;
      while (taken < by_source_.size() && by_source_[taken] == shares_[s].source) ++taken, --regular;
      end = std::fill_n(end, regular, Source(shares_[s].source));
    }
    shuffle(out, end - out, Sequence(plan_.inputs_.seed, uint32_t(cell.level), kShuffleStream, cell.cell));
    int64_t regular = end - out;
    for (size_t i = specials_.size(); i-- > 0;) {  // open a gap for each special draw, from the end
      const int64_t place = specials_[i].place;
      std::memmove(out + place + i + 1, out + place, size_t(regular - place) * sizeof(Source));
      out[size_t(place) + i] = Source(specials_[i].source);
      regular = place;
    }
  }

  // The special documents of a cell in order of time with their places; their sources also in by_source_.
  void draw_specials(const Cell& cell, size_t first, size_t last, int64_t total) {
    specials_.clear();
    by_source_.clear();
    uint64_t most = 0;
    for (size_t s = first; s < last; ++s) most = std::max(most, special_probability(shares_[s].source, cell.level));
    if (most == 0) return;
    Reader random(Sequence(plan_.inputs_.seed, uint32_t(cell.level), kSpecialStream, cell.cell));
    const int zeros = __builtin_clzll(most);
    int64_t candidates = total;
    for (int bit = 0; bit < zeros && candidates > 0; ++bit) candidates -= random.heads(candidates);
    chosen_.clear();
    while (int64_t(chosen_.size()) < candidates) {
      const uint64_t pick = random.below64(uint64_t(total));
      if (std::find(chosen_.begin(), chosen_.end(), pick) != chosen_.end()) continue;
      chosen_.push_back(pick);
      uint64_t rest = pick;
      size_t s = first;
      while (rest >= uint64_t(shares_[s].count)) rest -= uint64_t(shares_[s++].count);
      const uint32_t source = shares_[s].source;
      if (random.next64() < special_probability(source, cell.level) << zeros) by_source_.push_back(source);
    }
    for (const uint32_t source : by_source_) {
      const Hazard h = plan_.hazard(int(source));
      specials_.push_back({special_time(random, h, h.exponent(cell.level)), source, 0});
    }
    std::stable_sort(specials_.begin(), specials_.end(), [](const Special& a, const Special& b) { return a.time < b.time; });
    place_specials(random, specials_.data(), int(specials_.size()), total - int64_t(specials_.size()));
  }

  uint64_t special_probability(uint32_t source, int level) const {
    const Hazard h = plan_.hazard(int(source));
    return h.special_at(h.exponent(level));
  }

  // Documents of the cell's draws, source by source, into documents_; cursor_[i] is where source i starts.
  template <typename Document>
  void fetch(size_t first, size_t last, int64_t total) {
    documents_.resize(std::max(documents_.size(), size_t(total) * sizeof(Document)));
    Document* out = reinterpret_cast<Document*>(documents_.data());
    uint32_t offset = 0;
    for (size_t s = first; s < last; ++s) {
      const Share share = shares_[s];
      cursor_[share.source] = offset;
      permutations_.documents(share.source, drawn_[share.source], share.count, out + offset);
      offset += uint32_t(share.count);
    }
  }

  template <typename Source, typename Document>
  void emit(int64_t from, int64_t to, Source* source, Document* document) {
    const Source* order = reinterpret_cast<const Source*>(sources_.data());
    const Document* documents = reinterpret_cast<const Document*>(documents_.data());
    for (int64_t j = 0; j < from; ++j) ++cursor_[order[j]];
    for (int64_t j = from; j < to; ++j) *document++ = documents[cursor_[order[j]]++];
    std::memcpy(source, order + from, size_t(to - from) * sizeof(Source));
  }

  const OrderPlan& plan_;
  Permutations permutations_;
  std::vector<int64_t> drawn_, found_;
  std::vector<uint32_t> cursor_;
  std::vector<Share> shares_;
  std::vector<Special> specials_;
  std::vector<uint32_t> by_source_;
  std::vector<uint64_t> chosen_;
  std::vector<unsigned char> sources_, documents_;
  int64_t position_ = 0, start_ = 0, stop_ = 0;
};

namespace {

template <typename Source, typename Document>
void write_range(const OrderPlan& plan, int64_t first, int64_t last, int64_t start, int64_t stop, const OrderOutput& out,
                 int num_threads) {
  std::vector<std::unique_ptr<Expansion>> expansions(size_t(std::max(num_threads, 1)));
  parallel_for(last - first, num_threads, [&](int64_t task, int thread) {
    auto& expansion = expansions[size_t(thread)];
    if (!expansion) expansion = std::make_unique<Expansion>(plan);
    expansion->write(first + task, start, stop, start, static_cast<Source*>(out.source),
                     static_cast<Document*>(out.document));
  });
}

}  // namespace

void OrderPlan::order(int64_t start, int64_t stop, const OrderOutput& out, int num_threads) const {
  HUATUO_CHECK(0 <= start && start <= stop && stop <= total_,
               "wrong range of draws: got [" << start << ", " << stop << "), need 0 <= start <= stop <= " << total_);
  if (start == stop) return;
  const int64_t first = cell_of(start), last = cell_of(stop - 1) + 1;
  if (out.wide_source) {
    (out.wide_document ? write_range<uint16_t, uint64_t> : write_range<uint16_t, uint32_t>)(*this, first, last, start, stop, out, num_threads);
  } else {
    (out.wide_document ? write_range<uint8_t, uint64_t> : write_range<uint8_t, uint32_t>)(*this, first, last, start, stop, out, num_threads);
  }
}

std::vector<int64_t> OrderPlan::counts_before(int64_t position) const {
  HUATUO_CHECK(0 <= position && position <= total_, "wrong position: got " << position << ", need 0 to " << total_);
  if (position == total_) return std::vector<int64_t>(before_.end() - inputs_.num_sources(), before_.end());
  return Expansion(*this).counts_before(cell_of(position), position);
}

}  // namespace huatuo
