#include "blend_order.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "check.h"
#include "vector_kernels.h"

namespace huatuo {
namespace {

constexpr int64_t kAhead = 64;  // documents of a source that are made at once where its shares are small
constexpr int64_t kSlack =
    32;  // items that may be written behind the last one, so that loops write whole vectors

// Documents at the places [place, place + count) of a Feistel permutation.
template <typename Document>
void feistel_range(const Feistel& f, uint64_t place, int64_t count, Document* out) {
  const VectorKernels& kernels = *vector_kernels();
  const auto pass = [&](auto once, auto* answers, int batch) {
    if (once(f, place, batch, answers))
      for (int i = 0; i < batch; ++i)
        if (answers[i] >= f.n) answers[i] = std::decay_t<decltype(*answers)>(feistel(f, answers[i]));
  };
  while (count > 0) {
    const int batch = int(std::min<int64_t>(count, kBatch));
    if (f.n > 1ull << 31) {
      uint64_t wide[kBatch];
      pass(kernels.feistel_64, wide, batch);
      std::copy(wide, wide + batch, out);
    } else if constexpr (sizeof(Document) == 4) {
      pass(kernels.feistel_32, out, batch);
    } else {
      uint32_t narrow[kBatch];
      pass(kernels.feistel_32, narrow, batch);
      std::copy(narrow, narrow + batch, out);
    }
    place += uint64_t(batch), out += batch, count -= batch;
  }
}

// Fisher-Yates from the end, the same numbers as Reader::below32 gives one by one.
template <typename Item>
void shuffle(Item* items, int64_t count, const Sequence& sequence) {
  alignas(64) uint32_t numbers[kBatch + 8 * kLanes], others[kBatch + kLanes];
  const VectorKernels& kernels = *vector_kernels();
  uint64_t position = 0;
  for (int64_t last = count - 1; last > 0;) {
    const int steps = int(std::min<int64_t>(last, kBatch));
    const int skip = int(position & 3);
    const int padded = (steps + kLanes - 1) / kLanes * kLanes;
    kernels.fill(sequence, uint32_t(position >> 2), (skip + padded + 31) / 32 * 8, numbers);
    if (!kernels.partners(numbers + skip, uint32_t(last), steps, others)) {
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
  explicit Permutations(const OrderInputs& inputs)
      : inputs_(inputs), entries_(size_t(inputs.num_sources())), ahead_(entries_.size()) {}

  // The same as `documents` for a caller that goes on to draw `limit`: makes the documents of kAhead draws at
  // once, since a vector of places costs the same whether all of its lanes are wanted or one. May write
  // kSlack documents behind the last one.
  template <typename Document>
  void documents_ahead(uint32_t source, int64_t draw, int64_t count, int64_t limit, Document* out) {
    if (made_.empty()) made_.resize((ahead_.size() * kAhead + kSlack) * sizeof(Document));
    Document* const made = reinterpret_cast<Document*>(made_.data()) + size_t(source) * kAhead;
    Ahead& ahead = ahead_[source];
    while (count > 0) {
      if (draw < ahead.first || draw >= ahead.last) {
        if (count >= kAhead) return documents(source, draw, count, out);
        ahead = {draw, std::min(limit, draw + kAhead)};
        documents(source, draw, ahead.last - draw, made);
      }
      const int64_t taken = std::min(count, ahead.last - draw);
      const Document* const from = made + (draw - ahead.first);
      for (int64_t i = 0; i < taken; i += kSlack) std::copy_n(from + i, kSlack, out + i);
      out += taken, draw += taken, count -= taken;
    }
  }

  // Documents of the draws [draw, draw + count) of a source; draw counts from the first one of this order.
  template <typename Document>
  void documents(uint32_t source, int64_t draw, int64_t count, Document* out) {
    const int64_t held_start = inputs_.held_back_start[source];
    const int64_t held = inputs_.held_back_start[source + 1] - held_start;
    for (; count > 0 && draw < held; ++draw, --count)
      *out++ = Document(inputs_.held_back[size_t(held_start + draw)]);
    const int64_t n = inputs_.num_documents[source];
    for (int64_t k = inputs_.first_draw[source] + draw - held; count > 0;) {
      const int64_t epoch = k < n ? 0 : k / n, place = k - epoch * n, run = std::min(count, n - place);
      const Entry& entry = entry_of(source, uint64_t(epoch));
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

  struct Ahead {
    int64_t first = 0, last = 0;  // draws whose documents are made
  };

  const OrderInputs& inputs_;
  std::vector<Entry> entries_;
  std::vector<Ahead> ahead_;
  std::vector<unsigned char> made_;  // [S, kAhead] documents
};

}  // namespace

OrderPlan::OrderPlan(OrderInputs inputs, int num_threads, int64_t cell_draws) : inputs_(std::move(inputs)) {
  const int sources = inputs_.num_sources();
  int lowest = INT32_MAX;
  for (int i = 0; i < sources; ++i) {
    total_ += inputs_.num_draws[size_t(i)];
    if (inputs_.num_draws[size_t(i)] > 0) lowest = std::min(lowest, inputs_.exponent[size_t(i)]);
  }
  for (int i = 0; i < sources; ++i) {
    const size_t table = size_t(inputs_.table[size_t(i)]);
    hazards_.push_back({&inputs_.split[table * kSplitEntries], &inputs_.special[table * kSpecialEntries],
                        lowest == INT32_MAX ? 0 : inputs_.exponent[size_t(i)] + 5 - lowest});
  }
  max_cell_draws_ = 8192;
  while (max_cell_draws_ < 128 * int64_t(sources) && max_cell_draws_ < 1 << 17) max_cell_draws_ *= 2;
  max_specials_ = std::clamp<int64_t>(sources / 4, 16, 1024);
  build(num_threads, cell_draws);
}

int64_t OrderPlan::nbytes() const {
  return int64_t(cells_.size() * sizeof(Cell) + starts_.size() * 8 + before_.size() * 8);
}

void OrderPlan::split(const Cell& cell, const Share* shares, size_t num_shares, int64_t* early) const {
  // Most shares of a cell with many sources are small: they are split in groups, by the width of their
  // counts.
  const VectorKernels& kernels = *vector_kernels();
  const uint32_t level = uint32_t(cell.level);
  struct Group {
    uint32_t sources[kGroup], counts[kGroup];
    uint64_t probabilities[kGroup];
    size_t numbers[kGroup];
    int size = 0;
  } tiny, small;
  const auto split_one = [&](size_t number, uint64_t probability) {
    const Sequence sequence(inputs_.seed, level, shares[number].source, cell.cell);
    return kernels.binomial(sequence, shares[number].count, probability);
  };
  const auto finish = [&](Group& group, auto binomials) {
    int64_t successes[kGroup];
    binomials(Sequence(inputs_.seed, level, 0, cell.cell), group.sources, group.counts, group.probabilities,
              group.size, successes);
    for (int i = 0; i < group.size; ++i)
      early[group.numbers[i]] =
          successes[i] >= 0 ? successes[i] : split_one(group.numbers[i], group.probabilities[i]);
    group.size = 0;
  };
  for (size_t number = 0; number < num_shares; ++number) {
    const Share share = shares[number];
    const Hazard& h = hazard(share.source);
    const int exponent = h.exponent(cell.level);
    if (share.count == 0 || exponent > kHighestExponent) {
      early[number] = share.count;
    } else if (share.count > kShortCount) {
      early[number] = split_one(number, h.split_at(exponent));
    } else {
      Group& group = share.count <= kTinyCount ? tiny : small;
      group.sources[group.size] = share.source;
      group.counts[group.size] = uint32_t(share.count);
      group.probabilities[group.size] = h.split_at(exponent);
      group.numbers[group.size++] = number;
      if (tiny.size == kGroup) finish(tiny, kernels.tiny_binomials);
      if (small.size == kGroup) finish(small, kernels.short_binomials);
    }
  }
  if (tiny.size > 0) finish(tiny, kernels.tiny_binomials);
  if (small.size > 0) finish(small, kernels.short_binomials);
}

bool OrderPlan::is_whole(int level, const Share* shares, size_t num_shares, int64_t total) const {
  if (total > max_cell_draws_) return false;
  uint64_t most = 0;
  for (size_t i = 0; i < num_shares; ++i) {
    const Hazard& h = hazard(shares[i].source);
    const int exponent = h.exponent(level);
    if (exponent > kHighestSpecialExponent) return false;
    most = std::max(most, h.special_at(exponent));
  }
  return (static_cast<unsigned __int128>(most) * uint64_t(total)) <=
         static_cast<unsigned __int128>(max_specials_) << 64;
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
      part.done = present <= 1 || part.total <= cell_draws ||
                  is_whole(part.cell.level, shares.data(), present, part.total);
      if (!part.done) wanted.push_back(p);
    }
    if (wanted.empty()) break;
    open = true;
    std::vector<std::vector<int64_t>> early(wanted.size(), std::vector<int64_t>(sources));
    int64_t work = 0;
    for (const size_t p : wanted) work += parts[p].total;
    const size_t stride = 16,
                 groups = (sources + stride - 1) / stride;  // neighbours differ in size: spread them
    const auto split_group = [&](int64_t task, int) {
      const size_t w = size_t(task) / groups, group = size_t(task) % groups;
      Share own[stride] = {};
      int64_t first_half[stride] = {};
      size_t size = 0;
      for (size_t i = group; i < sources; i += groups)
        own[size++] = {uint32_t(i), parts[wanted[w]].counts[i]};
      split(parts[wanted[w]].cell, own, size, first_half);
      for (size_t k = 0; k < size; ++k) early[w][own[k].source] = first_half[k];
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
      if (early_total > 0)
        next.push_back({{2 * cell.cell, cell.level + 1}, early_total, false, std::move(early[w])});
      if (part.total > early_total)
        next.push_back(
            {{2 * cell.cell + 1, cell.level + 1}, part.total - early_total, false, std::move(part.counts)});
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
    for (size_t i = 0; i < sources; ++i)
      before_.push_back(before_[before_.size() - sources] + part.counts[i]);
  }
}

int64_t OrderPlan::cell_of(int64_t position) const {
  return std::upper_bound(starts_.begin(), starts_.end() - 1, position) - starts_.begin() - 1;
}

// Draws of one planned cell: goes down its tree, one thread, reusing its memory from cell to cell.
class Expansion {
 public:
  explicit Expansion(const OrderPlan& plan)
      : plan_(plan),
        permutations_(plan.inputs_),
        drawn_(size_t(plan.inputs_.num_sources())),
        cursor_(drawn_.size()) {}

  // Write the draws [start, stop) that lie in planned cell `index`; out is for draw number `origin`.
  template <typename Source, typename Document>
  void write(int64_t index, int64_t start, int64_t stop, int64_t origin, Source* source, Document* document) {
    begin(index, start, stop);
    // Where the whole cell is wanted, a source's draws go on to those before the next cell.
    const bool whole = start <= plan_.starts_[size_t(index)] && stop >= plan_.starts_[size_t(index) + 1];
    limit_ = whole ? &plan_.before_[size_t(index + 1) * drawn_.size()] : nullptr;
    descend(plan_.cells_[size_t(index)], 0, shares_.size(),
            [&](const Cell& cell, size_t first, size_t last, int64_t total) {
              const int64_t from = std::max<int64_t>(start_ - position_, 0),
                            to = std::min(stop_ - position_, total);
              const int64_t offset = position_ + from - origin;
              if (last - first == 1) {
                const Share share = shares_[first];
                std::fill(source + offset, source + offset + (to - from), Source(share.source));
                permutations_.documents(share.source, drawn_[share.source] + from, to - from,
                                        document + offset);
              } else {
                order_cell<Source>(cell, first, last, total);
                fetch<Document>(first, last, total);
                emit<Source, Document>(first, last, from, to, source + offset, document + offset);
              }
            });
  }

  // Draws of each source before `position`, which lies in planned cell `index`.
  std::vector<int64_t> counts_before(int64_t index, int64_t position) {
    begin(index, position, position + 1);
    descend(plan_.cells_[size_t(index)], 0, shares_.size(),
            [&](const Cell& cell, size_t first, size_t last, int64_t total) {
              const int64_t inside = position - position_;
              if (last - first == 1) {
                drawn_[shares_[first].source] += inside;
              } else {
                order_cell<uint16_t>(cell, first, last, total);
                for (int64_t j = 0; j < inside; ++j)
                  ++drawn_[reinterpret_cast<uint16_t*>(sources_.data())[j]];
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
        early_.resize(last - first);
        plan_.split(cell, &shares_[first], last - first, early_.data());
        shares_.resize(child + (last - first));
        size_t end = child;
        for (size_t s = first; s < last; ++s) {
          const int64_t early = early_[s - first];
          shares_[s].count -= early;
          shares_[end] = {shares_[s].source, early};
          end += early > 0;
        }
        shares_.resize(end);
      } else {
        shares_.resize(child + (last - first));
        size_t end = child;
        for (size_t s = first; s < last; ++s) {
          shares_[end] = shares_[s];
          end += shares_[s].count > 0;
        }
        shares_.resize(end);
      }
      descend({2 * cell.cell + uint64_t(half), cell.level + 1}, child, shares_.size(), visit);
      shares_.resize(child);
    }
  }

  // Source of every draw of a cell that is ordered as a whole, into sources_.
  template <typename Source>
  void order_cell(const Cell& cell, size_t first, size_t last, int64_t total) {
    sources_.resize(std::max(sources_.size(), (size_t(total) + kSlack) * sizeof(Source)));
    Source* out = reinterpret_cast<Source*>(sources_.data());
    draw_specials(cell, first, last, total);
    for (const Special& special : specials_) ++cursor_[special.source];
    Source* end = out;
    for (size_t s = first; s < last; ++s) {
      const uint32_t source = shares_[s].source;
      const int64_t regular = shares_[s].count - std::exchange(cursor_[source], 0);
      for (int64_t i = 0; i < regular; i += kSlack)  // whole vectors: the next source writes over the rest
        std::fill_n(end + i, kSlack, Source(source));
      end += regular;
    }
    shuffle(out, end - out, Sequence(plan_.inputs_.seed, uint32_t(cell.level), kShuffleStream, cell.cell));
    int64_t regular = end - out;
    for (size_t i = specials_.size();
         i-- > 0;) {  // from the end: move the run behind each special one, then place it
      const int64_t place = specials_[i].place;
      std::copy_backward(out + place, out + regular, out + regular + i + 1);
      out[size_t(place) + i] = Source(specials_[i].source);
      regular = place;
    }
  }

  // The special documents of a cell in order of time with their places.
  void draw_specials(const Cell& cell, size_t first, size_t last, int64_t total) {
    specials_.clear();
    uint64_t most = 0;
    for (size_t s = first; s < last; ++s)
      most = std::max(most, special_probability(shares_[s].source, cell.level));
    if (most == 0) return;
    Reader random(Sequence(plan_.inputs_.seed, uint32_t(cell.level), kSpecialStream, cell.cell));
    const int zeros = __builtin_clzll(most);
    int64_t candidates = total;
    for (int bit = 0; bit < zeros && candidates > 0; ++bit) candidates -= random.heads(candidates);
    if (candidates == 0) return;
    chosen_.assign(size_t(total + 63) / 64, 0);
    specials_.resize(size_t(candidates));
    size_t count = 0;
    ends_.resize(last - first);
    uint32_t end = 0;
    for (size_t s = first; s < last; ++s) ends_[s - first] = end += uint32_t(shares_[s].count);
    while (candidates > 0) {
      const uint64_t pick = random.below64(uint64_t(total));
      if (chosen_[pick >> 6] >> (pick & 63) & 1) continue;
      chosen_[pick >> 6] |= 1ull << (pick & 63);
      --candidates;
      const uint32_t source = shares_[first + share_of(uint32_t(pick))].source;
      specials_[count].source = source;  // about half of them stay: counted without a branch
      count += random.next64() < special_probability(source, cell.level) << zeros;
    }
    specials_.resize(count);
    for (Special& special : specials_) {
      const Hazard& h = plan_.hazard(special.source);
      special.time = special_time(random, h, h.exponent(cell.level));
    }
    std::stable_sort(specials_.begin(), specials_.end(),
                     [](const Special& a, const Special& b) { return a.time < b.time; });
    vector_kernels()->place_specials(random, specials_.data(), int(specials_.size()),
                                     total - int64_t(specials_.size()));
  }

  // Share that holds draw number `pick` of a cell: the first whose end lies behind it. No branch depends on
  // data.
  size_t share_of(uint32_t pick) const {
    const uint32_t* base = ends_.data();
    for (size_t size = ends_.size(); size > 1;) {
      const size_t half = size / 2;
      base += half * size_t(base[half - 1] <= pick);
      size -= half;
    }
    return size_t(base - ends_.data());
  }

  uint64_t special_probability(uint32_t source, int level) const {
    const Hazard& h = plan_.hazard(source);
    return h.special_at(h.exponent(level));
  }

  // Documents of the cell's draws, source by source, into documents_; cursor_[i] is where source i starts.
  template <typename Document>
  void fetch(size_t first, size_t last, int64_t total) {
    documents_.resize(std::max(documents_.size(), (size_t(total) + kSlack) * sizeof(Document)));
    Document* out = reinterpret_cast<Document*>(documents_.data());
    uint32_t offset = 0;
    for (size_t s = first; s < last; ++s) {
      const Share share = shares_[s];
      cursor_[share.source] = offset;
      if (limit_ == nullptr) {
        permutations_.documents(share.source, drawn_[share.source], share.count, out + offset);
      } else {
        permutations_.documents_ahead(share.source, drawn_[share.source], share.count, limit_[share.source],
                                      out + offset);
      }
      offset += uint32_t(share.count);
    }
  }

  template <typename Source, typename Document>
  void emit(size_t first, size_t last, int64_t from, int64_t to, Source* source, Document* document) {
    const Source* order = reinterpret_cast<const Source*>(sources_.data());
    const Document* documents = reinterpret_cast<const Document*>(documents_.data());
    for (int64_t j = 0; j < from; ++j) ++cursor_[order[j]];
    for (int64_t j = from; j < to; ++j) *document++ = documents[cursor_[order[j]]++];
    for (size_t s = first; s < last; ++s) cursor_[shares_[s].source] = 0;
    std::memcpy(source, order + from, size_t(to - from) * sizeof(Source));
  }

  const OrderPlan& plan_;
  Permutations permutations_;
  std::vector<int64_t> drawn_, found_, early_;
  std::vector<uint32_t> cursor_;  // [S] zero between the steps that use it
  std::vector<uint32_t> ends_;
  std::vector<Share> shares_;
  std::vector<Special> specials_;
  std::vector<uint64_t> chosen_;
  std::vector<unsigned char> sources_, documents_;
  int64_t position_ = 0, start_ = 0, stop_ = 0;
  const int64_t* limit_ = nullptr;  // [S] draws of each source before the next planned cell
};

namespace {

template <typename Source, typename Document>
void write_range(const OrderPlan& plan, int64_t first, int64_t last, int64_t start, int64_t stop,
                 const OrderOutput& out, int num_threads) {
  std::vector<std::unique_ptr<Expansion>> expansions(size_t(std::max(num_threads, 1)));
  parallel_for(last - first, num_threads, [&](int64_t task, int thread) {
    auto& expansion = expansions[size_t(thread)];
    if (!expansion) expansion = std::make_unique<Expansion>(plan);
    expansion->write(first + task, start, stop, start, static_cast<Source*>(out.source),
                     static_cast<Document*>(out.document));
  });
}

}  // namespace

void OrderPlan::small_documents(int source, int64_t draws, std::vector<uint16_t>& out) const {
  const size_t offset = out.size(), s = size_t(source);
  out.resize(offset + size_t(draws));
  Permutations(inputs_).documents(uint32_t(source),
                                  inputs_.held_back_start[s + 1] - inputs_.held_back_start[s], draws,
                                  out.data() + offset);
}

void OrderPlan::order(int64_t start, int64_t stop, const OrderOutput& out, int num_threads) const {
  HUATUO_CHECK(
      0 <= start && start <= stop && stop <= total_,
      "wrong range of draws: got [" << start << ", " << stop << "), need 0 <= start <= stop <= " << total_);
  if (start == stop) return;
  const int64_t first = cell_of(start), last = cell_of(stop - 1) + 1;
  if (out.wide_source) {
    (out.wide_document ? write_range<uint16_t, uint64_t>
                       : write_range<uint16_t, uint32_t>)(*this, first, last, start, stop, out, num_threads);
  } else {
    (out.wide_document ? write_range<uint8_t, uint64_t>
                       : write_range<uint8_t, uint32_t>)(*this, first, last, start, stop, out, num_threads);
  }
}

std::vector<int64_t> OrderPlan::counts_before(int64_t position) const {
  HUATUO_CHECK(0 <= position && position <= total_,
               "wrong position: got " << position << ", need 0 to " << total_);
  if (position == total_) return std::vector<int64_t>(before_.end() - inputs_.num_sources(), before_.end());
  return Expansion(*this).counts_before(cell_of(position), position);
}

}  // namespace huatuo
