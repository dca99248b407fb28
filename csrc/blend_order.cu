// The priority order on a GPU, with the same bytes as blend_order.cpp: both follow order_law.h.
//
// A thread block takes one planned cell, walks its tree, and orders each cell that is ordered as a whole: its
// threads make the random numbers, the splits and the documents in parallel; one thread does the shuffle,
// which is a chain of swaps in shared memory. Thousands of blocks in flight hide that chain.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "blend_order.h"

namespace huatuo {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 8;     // of a multiprocessor at once: at most 64 registers and 3,584 bytes of static
                               // shared memory on sm_80 (benchmarks/kernel_budget.py)
constexpr int kMaxDepth = 88;  // cells that wait for their turn on the way down; more: the CPU takes over
constexpr int kMaxSpecialDraws = 4096;    // of one cell; about four times the most that are expected
constexpr int kSharedDraws = 8192;        // cells up to this size are shuffled in shared memory
constexpr int64_t kPieceDraws = 1 << 16;  // cells of a single source are cut into such pieces
constexpr int64_t kChunkDraws = 1 << 28;  // draws whose output is on the device at once
constexpr int64_t kMostScratch =
    4ll << 30;  // bytes for all blocks: with many thousand sources fewer blocks run

// What the kernel needs of a plan, on the device.
struct DevicePlan {
  int sources, tables;
  uint64_t seed;
  int64_t max_cell_draws, max_specials;
  const int32_t *table, *root_exponent;       // [S]
  const uint64_t *split, *special;            // [T, entries]
  const int64_t *num_documents, *first_draw;  // [S]
  const int64_t *held_back_start, *held_back;
  const int64_t* feistel_start;  // [S] number of the first epoch's network, or -1 for a small source
  const int64_t* first_epoch;    // [S]
  const Feistel* feistel;
  const int64_t* small_start;  // [S] where the documents of a small source's draws begin
  const uint16_t* small;
};

// One thread block's work: a planned cell, or a piece of one that has a single source.
struct Work {
  Cell cell;
  int64_t start;         // draws before it
  int64_t before;        // index of its before-counts in the plan's table, in rows
  int64_t skip, length;  // piece of a single-source cell; length 0: the whole cell
};

struct Scratch {
  uint32_t* stack;    // [kMaxDepth, S] counts of waiting cells
  uint32_t* counts;   // [S] of the current cell
  uint32_t* early;    // [S]
  int64_t* drawn;     // [S] draws of each source before the current cell
  uint32_t* cursor;   // [S]
  uint32_t* regular;  // [S]
  uint16_t* order;    // [max cell]
  uint32_t* rank;     // [max cell]
};

__device__ Hazard hazard_of(const DevicePlan& p, int source) {
  const int table = p.table[source];
  return {p.split + int64_t(table) * kSplitEntries, p.special + int64_t(table) * kSpecialEntries,
          p.root_exponent[source]};
}

__device__ uint64_t document_of(const DevicePlan& p, int source, int64_t draw) {
  const int64_t held_start = p.held_back_start[source], held = p.held_back_start[source + 1] - held_start;
  if (draw < held) return uint64_t(p.held_back[held_start + draw]);
  const int64_t n = p.num_documents[source], k = p.first_draw[source] + draw - held;
  if (n <= kSmallSource) return p.small[p.small_start[source] + k - p.first_draw[source]];
  const int64_t epoch = k / n;
  return feistel(p.feistel[p.feistel_start[source] + epoch - p.first_epoch[source]], uint64_t(k - epoch * n));
}

template <typename Source, typename Document>
struct Output {
  Source* source;
  Document* document;
  int64_t start, stop;

  __device__ void write(const DevicePlan& p, int64_t position, int from, int64_t draw) const {
    if (position < start || position >= stop) return;
    source[position - start] = Source(from);
    document[position - start] = Document(document_of(p, from, draw));
  }
};

// Largest value over the block, the same for all threads.
__device__ uint64_t block_max(uint64_t value) {
  __shared__ unsigned long long most;
  __syncthreads();
  if (threadIdx.x == 0) most = 0;
  __syncthreads();
  atomicMax(&most, static_cast<unsigned long long>(value));
  __syncthreads();
  return most;
}

__device__ uint64_t block_sum(uint64_t value) {
  __shared__ unsigned long long sum;
  __syncthreads();
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, static_cast<unsigned long long>(value));
  __syncthreads();
  return sum;
}

struct CellState {
  uint64_t total, present, most;
  bool too_wide;  // a source's hazard is above what a whole cell may have
};

__device__ CellState look_at(const DevicePlan& p, const uint32_t* counts, int level) {
  uint64_t total = 0, present = 0, most = 0, wide = 0;
  for (int i = threadIdx.x; i < p.sources; i += kThreads) {
    if (counts[i] == 0) continue;
    const Hazard h = hazard_of(p, i);
    const int exponent = h.exponent(level);
    total += counts[i];
    ++present;
    if (exponent > kHighestSpecialExponent) {
      wide = 1;
    } else {
      const uint64_t special = h.special_at(exponent);
      most = special > most ? special : most;
    }
  }
  return {block_sum(total), block_sum(present), block_max(most), block_max(wide) != 0};
}

// total * most <= max_specials * 2^64
__device__ bool is_whole(const DevicePlan& p, const CellState& s) {
  return s.total <= uint64_t(p.max_cell_draws) && !s.too_wide &&
         (mulhi64(s.total, s.most) < uint64_t(p.max_specials) ||
          (mulhi64(s.total, s.most) == uint64_t(p.max_specials) && s.total * s.most == 0));
}

// Thread 0 only: the special draws of a whole cell, in order of time, with their places. False: too many for
// the buffer.
__device__ bool draw_specials(const DevicePlan& p, const Cell& cell, const Scratch& scratch,
                              const CellState& state, Special* specials, uint32_t* picks, int& count) {
  count = 0;
  if (state.most == 0) return true;
  Reader random(Sequence(p.seed, uint32_t(cell.level), kSpecialStream, cell.cell));
  const int zeros = __clzll(static_cast<long long>(state.most));
  int64_t candidates = int64_t(state.total);
  for (int bit = 0; bit < zeros && candidates > 0; ++bit) candidates -= random.heads(candidates);
  if (candidates > kMaxSpecialDraws) return false;
  int chosen = 0;
  while (chosen < candidates) {
    const uint32_t pick = uint32_t(random.below64(state.total));
    bool repeated = false;
    for (int i = 0; i < chosen; ++i) repeated = repeated || picks[i] == pick;
    if (repeated) continue;
    picks[chosen++] = pick;
    uint32_t rest = pick, source = 0;
    while (rest >= scratch.counts[source]) rest -= scratch.counts[source++];
    const Hazard h = hazard_of(p, int(source));
    if (random.next64() < h.special_at(h.exponent(cell.level)) << zeros) specials[count++] = {0, source, 0};
  }
  for (int i = 0; i < count; ++i) {
    const Hazard h = hazard_of(p, int(specials[i].source));
    specials[i].time = special_time(random, h, h.exponent(cell.level));
  }
  for (int i = 1; i < count; ++i) {  // insertion sort: stable, and there are few
    const Special item = specials[i];
    int j = i;
    for (; j > 0 && specials[j - 1].time > item.time; --j) specials[j] = specials[j - 1];
    specials[j] = item;
  }
  place_specials(random, specials, count, int64_t(state.total) - count);
  return true;
}

// Order one whole cell and write its draws.
template <typename Source, typename Document>
__device__ bool order_cell(const DevicePlan& p, const Cell& cell, int64_t position, const Scratch& scratch,
                           const CellState& state, Special* specials, uint32_t* picks,
                           const Output<Source, Document>& out, uint16_t* shared_order) {
  __shared__ int special_count;
  __shared__ bool fits;
  __shared__ uint32_t numbers[4 * kThreads];
  __shared__ uint32_t bounds[2];
  if (threadIdx.x == 0) fits = draw_specials(p, cell, scratch, state, specials, picks, special_count);
  __syncthreads();
  if (!fits) return false;
  const uint32_t total = uint32_t(state.total), regular_total = total - uint32_t(special_count);
  uint16_t* order = total <= kSharedDraws ? shared_order : scratch.order;

  for (int i = threadIdx.x; i < p.sources; i += kThreads)
    scratch.regular[i] = scratch.counts[i], scratch.cursor[i] = 0;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < special_count; ++i) --scratch.regular[specials[i].source];
  __syncthreads();
  uint32_t offset = 0;
  for (int i = 0; i < p.sources; ++i) {
    for (uint32_t j = threadIdx.x; j < scratch.regular[i]; j += kThreads) order[offset + j] = uint16_t(i);
    offset += scratch.regular[i];
  }

  const Sequence sequence(p.seed, uint32_t(cell.level), kShuffleStream, cell.cell);
  uint32_t last = regular_total == 0 ? 0 : regular_total - 1;
  for (uint32_t block = 0; last > 0; block += kThreads) {
    __syncthreads();
    philox(sequence, block + threadIdx.x, numbers + 4 * threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 0; i < 4 * kThreads && last > 0; ++i) {
        const uint64_t product = uint64_t(numbers[i]) * (last + 1);
        if (uint32_t(product) < last + 1 && uint32_t(product) < (0u - (last + 1)) % (last + 1)) continue;
        const uint32_t other = uint32_t(product >> 32);
        const uint16_t item = order[last];
        order[last] = order[other];
        order[other] = item;
        --last;
      }
      bounds[0] = last;
    }
    __syncthreads();
    last = bounds[0];
  }
  __syncthreads();

  if (threadIdx.x == 0) {
    uint32_t end = regular_total;
    for (int i = special_count; i-- > 0;) {
      const uint32_t place = specials[i].place;
      for (uint32_t j = end; j-- > place;) order[j + uint32_t(i) + 1] = order[j];
      order[place + uint32_t(i)] = uint16_t(specials[i].source);
      end = place;
    }
    for (uint32_t j = 0; j < total; ++j) scratch.rank[j] = scratch.cursor[order[j]]++;
  }
  __syncthreads();
  for (uint32_t j = threadIdx.x; j < total; j += kThreads)
    out.write(p, position + j, order[j], scratch.drawn[order[j]] + scratch.rank[j]);
  __syncthreads();
  return true;
}

// Walk the tree below one planned cell in time order. False: a buffer was too small.
template <typename Source, typename Document>
__device__ bool expand(const DevicePlan& p, const Work& work, const int64_t* before, const Scratch& scratch,
                       Special* specials, uint32_t* picks, const Output<Source, Document>& out,
                       uint16_t* shared_order) {
  __shared__ Cell waiting[kMaxDepth];
  const int64_t* row = before + work.before * p.sources;
  for (int i = threadIdx.x; i < p.sources; i += kThreads) {
    scratch.drawn[i] = row[i];
    scratch.counts[i] = uint32_t(row[p.sources + i] - row[i]);
  }
  __syncthreads();
  Cell cell = work.cell;
  int64_t position = work.start;
  for (int depth = 0;;) {
    const CellState state = look_at(p, scratch.counts, cell.level);
    const bool outside = position + int64_t(state.total) <= out.start || position >= out.stop;
    if (!outside && state.present > 1 && !is_whole(p, state)) {
      for (int i = threadIdx.x; i < p.sources; i += kThreads) {
        const uint32_t count = scratch.counts[i];
        uint32_t early = count;
        const Hazard h = hazard_of(p, i);
        const int exponent = h.exponent(cell.level);
        if (count > 0 && exponent <= kHighestExponent) {
          Reader random(Sequence(p.seed, uint32_t(cell.level), uint32_t(i), cell.cell));
          early = uint32_t(random.binomial(count, h.split_at(exponent)));
        }
        scratch.early[i] = early;
      }
      __syncthreads();
      uint64_t early_total = 0;
      for (int i = threadIdx.x; i < p.sources; i += kThreads) early_total += scratch.early[i];
      early_total = block_sum(early_total);
      const bool both = early_total > 0 && early_total < state.total;
      if (both && depth == kMaxDepth) return false;
      for (int i = threadIdx.x; i < p.sources; i += kThreads) {
        if (both) scratch.stack[int64_t(depth) * p.sources + i] = scratch.counts[i] - scratch.early[i];
        if (early_total > 0) scratch.counts[i] = scratch.early[i];
      }
      if (both) {
        if (threadIdx.x == 0) waiting[depth] = {2 * cell.cell + 1, cell.level + 1};
        ++depth;
      }
      cell = {2 * cell.cell + (early_total > 0 ? 0 : 1), cell.level + 1};
      __syncthreads();
      continue;
    }
    if (!outside) {
      if (state.present == 1) {
        for (int i = 0; i < p.sources; ++i)
          for (uint32_t j = threadIdx.x; j < scratch.counts[i]; j += kThreads)
            out.write(p, position + j, i, scratch.drawn[i] + j);
      } else if (!order_cell(p, cell, position, scratch, state, specials, picks, out, shared_order)) {
        return false;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.sources; i += kThreads) scratch.drawn[i] += scratch.counts[i];
    position += int64_t(state.total);
    __syncthreads();
    if (depth == 0) return true;
    --depth;
    cell = waiting[depth];
    for (int i = threadIdx.x; i < p.sources; i += kThreads)
      scratch.counts[i] = scratch.stack[int64_t(depth) * p.sources + i];
    __syncthreads();
  }
}

template <typename Source, typename Document>
__global__ void __launch_bounds__(kThreads, kBlocks)
    order_kernel(DevicePlan plan, const Work* work, int64_t work_count, const int64_t* before,
                 unsigned char* scratch_bytes, int64_t scratch_stride, Special* all_specials,
                 uint32_t* all_picks, Output<Source, Document> out, unsigned long long* next, int* failed) {
  extern __shared__ uint16_t shared_order[];
  __shared__ unsigned long long item;
  const int64_t sources = plan.sources;
  unsigned char* bytes = scratch_bytes + int64_t(blockIdx.x) * scratch_stride;
  Scratch scratch;
  scratch.drawn = reinterpret_cast<int64_t*>(bytes);
  scratch.stack = reinterpret_cast<uint32_t*>(scratch.drawn + sources);
  scratch.counts = scratch.stack + kMaxDepth * sources;
  scratch.early = scratch.counts + sources;
  scratch.cursor = scratch.early + sources;
  scratch.regular = scratch.cursor + sources;
  scratch.rank = scratch.regular + sources;
  scratch.order = reinterpret_cast<uint16_t*>(scratch.rank + plan.max_cell_draws);
  Special* specials = all_specials + int64_t(blockIdx.x) * kMaxSpecialDraws;
  uint32_t* picks = all_picks + int64_t(blockIdx.x) * kMaxSpecialDraws;
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) item = atomicAdd(next, 1ull);
    __syncthreads();
    if (item >= static_cast<unsigned long long>(work_count)) return;
    const Work w = work[item];
    if (w.length > 0) {
      const int64_t* row = before + w.before * sources;
      int source = 0;
      while (row[sources + source] == row[source]) ++source;
      for (int64_t j = threadIdx.x; j < w.length; j += kThreads)
        out.write(plan, w.start + w.skip + j, source, row[source] + w.skip + j);
    } else if (!expand(plan, w, before, scratch, specials, picks, out, shared_order)) {
      if (threadIdx.x == 0) *failed = 1;
      return;
    }
  }
}

// Device memory that is freed whatever happens; the first CUDA error is kept.
class Device {
 public:
  ~Device() {
    for (void* pointer : allocated_) cudaFree(pointer);
  }
  bool check(cudaError_t error) {
    if (error != cudaSuccess && message_.empty()) message_ = cudaGetErrorString(error);
    return message_.empty();
  }
  template <typename T>
  T* allocate(int64_t count) {
    void* pointer = nullptr;
    check(cudaMalloc(&pointer, size_t(std::max<int64_t>(count, 1)) * sizeof(T)));
    if (pointer != nullptr) allocated_.push_back(pointer);
    return static_cast<T*>(pointer);
  }
  template <typename T>
  const T* upload(const std::vector<T>& values) {
    T* pointer = allocate<T>(int64_t(values.size()));
    if (message_.empty() && !values.empty())
      check(cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return pointer;
  }
  const std::string& message() const { return message_; }

 private:
  std::vector<void*> allocated_;
  std::string message_;
};

DevicePlan upload_plan(const OrderPlan& plan, Device& device) {
  const OrderInputs& in = plan.inputs();
  const int sources = in.num_sources();
  std::vector<int32_t> root_exponent;
  std::vector<int64_t> feistel_start(size_t(sources), -1), first_epoch(size_t(sources), 0),
      small_start(size_t(sources), 0);
  std::vector<Feistel> networks;
  std::vector<uint16_t> small;
  for (int i = 0; i < sources; ++i) {
    const size_t s = size_t(i);
    root_exponent.push_back(plan.hazard(i).root_exponent);
    const int64_t n = in.num_documents[s];
    const int64_t draws = in.num_draws[s] - (in.held_back_start[s + 1] - in.held_back_start[s]);
    if (draws <= 0) continue;
    const int64_t first = in.first_draw[s] / n, last = (in.first_draw[s] + draws - 1) / n;
    first_epoch[s] = first;
    if (n > kSmallSource) {
      feistel_start[s] = int64_t(networks.size());
      for (int64_t epoch = first; epoch <= last; ++epoch)
        networks.push_back(
            make_feistel(uint64_t(n), in.permutation_seeds[s], in.permutation_streams[s], uint64_t(epoch)));
    } else {
      small_start[s] = int64_t(small.size());
      plan.small_documents(i, draws, small);
    }
  }
  DevicePlan p{};
  p.sources = sources;
  p.seed = in.seed;
  p.max_cell_draws = plan.max_cell_draws();
  p.max_specials = plan.max_specials();
  p.table = device.upload(in.table);
  p.root_exponent = device.upload(root_exponent);
  p.split = device.upload(in.split);
  p.special = device.upload(in.special);
  p.num_documents = device.upload(in.num_documents);
  p.first_draw = device.upload(in.first_draw);
  p.held_back_start = device.upload(in.held_back_start);
  p.held_back = device.upload(in.held_back);
  p.feistel_start = device.upload(feistel_start);
  p.first_epoch = device.upload(first_epoch);
  p.feistel = device.upload(networks);
  p.small_start = device.upload(small_start);
  p.small = device.upload(small);
  return p;
}

// Work of the draws [start, stop).
std::vector<Work> list_work(const OrderPlan& plan, int64_t start, int64_t stop) {
  std::vector<Work> work;
  const auto& starts = plan.starts();
  const size_t sources = size_t(plan.inputs().num_sources());
  for (size_t c = 0; c < plan.cells().size(); ++c) {
    if (starts[c + 1] <= start || starts[c] >= stop) continue;
    int present = 0;
    for (size_t i = 0; i < sources && present < 2; ++i)
      present += plan.before()[(c + 1) * sources + i] > plan.before()[c * sources + i];
    const Work whole = {plan.cells()[c], starts[c], int64_t(c), 0, 0};
    if (present > 1) {
      work.push_back(whole);
      continue;
    }
    const int64_t first = std::max(start - starts[c], int64_t(0)),
                  last = std::min(stop, starts[c + 1]) - starts[c];
    for (int64_t skip = first; skip < last; skip += kPieceDraws) {
      work.push_back(whole);
      work.back().skip = skip;
      work.back().length = std::min(kPieceDraws, last - skip);
    }
  }
  return work;
}

template <typename Source, typename Document>
bool run(const OrderPlan& plan, int64_t start, int64_t stop, Source* source, Document* document,
         std::string& reason, double& kernel_seconds) {
  Device device;
  cudaDeviceProp properties;
  int current = 0;
  if (!device.check(cudaGetDevice(&current)) ||
      !device.check(cudaGetDeviceProperties(&properties, current))) {
    reason = device.message();
    return false;
  }
  const DevicePlan device_plan = upload_plan(plan, device);
  const int64_t* before = device.upload(plan.before());
  const int64_t sources = device_plan.sources;
  int per_multiprocessor = 0;
  const size_t shared = kSharedDraws * sizeof(uint16_t);
  device.check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &per_multiprocessor, order_kernel<Source, Document>, kThreads, shared));
  const int64_t bytes = 8 * sources + 4 * (kMaxDepth + 4) * sources + 6 * device_plan.max_cell_draws;
  const int64_t stride = (bytes + 255) / 256 * 256;
  const int64_t blocks = std::min(std::max(1, per_multiprocessor) * int64_t(properties.multiProcessorCount),
                                  std::max<int64_t>(1, kMostScratch / stride));
  unsigned char* scratch = device.allocate<unsigned char>(blocks * stride);
  Special* specials = device.allocate<Special>(blocks * kMaxSpecialDraws);
  uint32_t* picks = device.allocate<uint32_t>(blocks * kMaxSpecialDraws);
  const int64_t chunk = std::min(kChunkDraws, stop - start);
  Output<Source, Document> out = {device.allocate<Source>(chunk), device.allocate<Document>(chunk), 0, 0};
  unsigned long long* next = device.allocate<unsigned long long>(1);
  int* failed = device.allocate<int>(1);
  cudaEvent_t begin = nullptr, end = nullptr;
  device.check(cudaEventCreate(&begin));
  device.check(cudaEventCreate(&end));
  int has_failed = 0;
  for (int64_t first = start; first < stop && device.message().empty() && !has_failed; first += chunk) {
    const int64_t last = std::min(first + chunk, stop);
    const std::vector<Work> work = list_work(plan, first, last);
    Device uploads;  // frees the work list after the chunk
    const Work* device_work = uploads.upload(work);
    reason = uploads.message();
    for (const Work& w : work)  // the kernel counts the draws of a walk in 32 bits
      if (w.length == 0 && plan.starts()[size_t(w.before) + 1] - w.start > int64_t(UINT32_MAX))
        reason = "a planned cell has more than 2^32 draws";
    if (!reason.empty()) break;
    out.start = first;
    out.stop = last;
    device.check(cudaMemset(next, 0, sizeof(*next)));
    device.check(cudaMemset(failed, 0, sizeof(*failed)));
    device.check(cudaEventRecord(begin));
    const unsigned grid = unsigned(std::min<int64_t>(blocks, int64_t(work.size())));
    order_kernel<<<grid, kThreads, shared>>>(device_plan, device_work, int64_t(work.size()), before, scratch,
                                             stride, specials, picks, out, next, failed);
    device.check(cudaGetLastError());
    device.check(cudaEventRecord(end));
    device.check(cudaEventSynchronize(end));
    float milliseconds = 0;
    device.check(cudaEventElapsedTime(&milliseconds, begin, end));
    kernel_seconds += milliseconds / 1000.0;
    device.check(cudaMemcpy(&has_failed, failed, sizeof(int), cudaMemcpyDeviceToHost));
    device.check(cudaMemcpy(source + (first - start), out.source, size_t(last - first) * sizeof(Source),
                            cudaMemcpyDeviceToHost));
    device.check(cudaMemcpy(document + (first - start), out.document, size_t(last - first) * sizeof(Document),
                            cudaMemcpyDeviceToHost));
  }
  if (begin != nullptr) cudaEventDestroy(begin);
  if (end != nullptr) cudaEventDestroy(end);
  if (reason.empty()) reason = device.message();
  if (reason.empty() && has_failed) reason = "the order needs more scratch memory than the kernel has";
  return reason.empty();
}

}  // namespace

bool order_on_gpu(const OrderPlan& plan, int64_t start, int64_t stop, const OrderOutput& out,
                  std::string& reason, double& kernel_seconds) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    reason = error != cudaSuccess ? cudaGetErrorString(error) : "no CUDA device";
    return false;
  }
  kernel_seconds = 0;
  if (start == stop) return true;
  if (out.wide_source) {
    auto* source = static_cast<uint16_t*>(out.source);
    return out.wide_document
               ? run(plan, start, stop, source, static_cast<uint64_t*>(out.document), reason, kernel_seconds)
               : run(plan, start, stop, source, static_cast<uint32_t*>(out.document), reason, kernel_seconds);
  }
  auto* source = static_cast<uint8_t*>(out.source);
  return out.wide_document
             ? run(plan, start, stop, source, static_cast<uint64_t*>(out.document), reason, kernel_seconds)
             : run(plan, start, stop, source, static_cast<uint32_t*>(out.document), reason, kernel_seconds);
}

}  // namespace huatuo
