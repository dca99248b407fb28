#include "pair_merges.h"

#include <algorithm>
#include <functional>

#include "check.h"

namespace huatuo {

namespace {

constexpr uint64_t kNoPair = ~0ull;
constexpr int32_t kNone = -1, kNoRank = INT32_MAX;
constexpr int32_t kLongRun = 128;  // symbols up to which looking at every rank is quicker than a heap
constexpr uint32_t kCodePoints = 0x110000, kSpaceMark = 0x2581;

uint64_t key_of(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

int32_t lowest_of(const int32_t* ranks, int32_t count) {
  int32_t lowest = kNoRank;
  for (int32_t number = 0; number < count; ++number) lowest = std::min(lowest, ranks[number]);
  return lowest;
}

// The character at `place`, which moves behind it.
uint32_t next_character(std::string_view text, size_t& place) {
  const auto byte = [&](size_t number) { return uint32_t(uint8_t(text[place + number])); };
  const uint32_t first = byte(0);
  const size_t size = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  HUATUO_CHECK(place + size <= text.size(), "text ends within a character");
  uint32_t code = size == 1 ? first : first & (0x7Fu >> size);
  for (size_t number = 1; number < size; ++number) code = code << 6 | (byte(number) & 0x3F);
  place += size;
  return std::min(code, kCodePoints - 1);
}

std::vector<uint32_t> characters_of(std::string_view text) {
  std::vector<uint32_t> found;
  for (size_t place = 0; place < text.size();) found.push_back(next_character(text, place));
  return found;
}

std::vector<Merge> by_rank(const int32_t* merges, size_t count) {
  std::vector<Merge> found;
  for (size_t rank = 0; rank < count; ++rank) {
    const int32_t* const merge = merges + 3 * rank;
    found.push_back({merge[0], merge[1], int32_t(rank), merge[2]});
  }
  return found;
}

}  // namespace

PairMerges::PairMerges(const std::vector<Merge>& merges) {
  int bits = 4;
  while (1ull << bits < merges.size() + merges.size() / 2) ++bits;
  shift_ = 64 - bits;
  pairs_.assign(1ull << bits, {kNoPair, 0, 0});
  for (const auto& [left, right, rank, merged] : merges) {
    HUATUO_CHECK(left >= 0 && right >= 0 && rank >= 0 && merged >= 0,
                 "wrong merge: need whole numbers from 0");
    const uint64_t key = key_of(left, right);
    pairs_[slot(key)] = {key, rank, merged};
  }
}

const PairMerges::Pair* PairMerges::find(uint64_t key) const {
  const Pair& pair = pairs_[slot(key)];
  return pair.key == key ? &pair : nullptr;
}

// Where the pair stands, or the empty place where it would.
size_t PairMerges::slot(uint64_t key) const {
  const size_t mask = pairs_.size() - 1;
  size_t place = size_t(key * 0x9E3779B97F4A7C15ull >> shift_);
  while (pairs_[place].key != key && pairs_[place].key != kNoPair) place = (place + 1) & mask;
  return place;
}

void PairMerges::apply(MergeScratch& scratch) const {
  auto& [symbols, left, right, rank, merged, heap, kinds, offsets] = scratch;
  const int32_t count = int32_t(symbols.size());
  if (count < 2) return;
  for (auto* array : {&left, &right, &rank, &merged}) array->resize(size_t(count));
  const bool is_long = count > kLongRun;
  heap.clear();
  const auto look_up = [&](int32_t symbol) {  // the pair that it begins
    const Pair* const pair =
        right[symbol] == count ? nullptr : find(key_of(symbols[symbol], symbols[right[symbol]]));
    rank[symbol] = pair == nullptr ? kNoRank : pair->rank;
    if (pair == nullptr) return;
    merged[symbol] = pair->merged;
    if (!is_long) return;
    heap.push_back(uint64_t(pair->rank) << 32 | uint32_t(symbol));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  const auto next = [&] {  // the symbol that begins the next pair to merge, or `count`
    if (!is_long) {
      const int32_t lowest = lowest_of(rank.data(), count);
      return lowest == kNoRank ? count : int32_t(std::find(rank.begin(), rank.end(), lowest) - rank.begin());
    }
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      const int32_t symbol = int32_t(uint32_t(heap.back())), its_rank = int32_t(heap.back() >> 32);
      heap.pop_back();
      if (rank[symbol] == its_rank) return symbol;  // else one of the two has become another since
    }
    return count;
  };
  for (int32_t symbol = 0; symbol < count; ++symbol) {
    left[symbol] = symbol - 1;
    right[symbol] = symbol + 1;
    look_up(symbol);
  }
  for (int32_t symbol = next(); symbol != count; symbol = next()) {
    const int32_t gone = right[symbol];
    symbols[symbol] = merged[symbol];
    rank[gone] = kNoRank;
    right[symbol] = right[gone];
    if (right[gone] != count) left[right[gone]] = symbol;
    look_up(symbol);
    if (left[symbol] >= 0) look_up(left[symbol]);
  }
  int32_t kept = 0;
  for (int32_t symbol = 0; symbol != count; symbol = right[symbol]) symbols[kept++] = symbols[symbol];
  symbols.resize(size_t(kept));
}

ByteLevelEncoder::ByteLevelEncoder(const std::vector<std::string>& pieces, const int32_t* merges,
                                   size_t num_merges, std::vector<uint8_t> kinds, int64_t longest_number,
                                   bool prefer_whole)
    : merges_(by_rank(merges, num_merges)),
      kinds_(std::move(kinds)),
      longest_number_(size_t(longest_number)) {
  HUATUO_CHECK(longest_number >= 1, "wrong longest_number: got " << longest_number << ", need at least 1");
  byte_ids_.fill(kNone);
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].size() == 1) byte_ids_[uint8_t(pieces[id][0])] = int32_t(id);
  }
  for (size_t byte = 0; byte < 256; ++byte)
    HUATUO_CHECK(byte_ids_[byte] >= 0, "byte " << byte << " is no piece");
  MergeScratch scratch;
  std::vector<int32_t> found;
  for (size_t id = 0; prefer_whole && id < pieces.size(); ++id) {
    found.clear();
    encode_word(pieces[id], scratch, found);
    if (!found.empty() && found != std::vector<int32_t>{int32_t(id)})
      not_merged_.emplace_back(pieces[id], id);
  }
  for (const auto& [text, id] : not_merged_) whole_[text] = id;
}

void ByteLevelEncoder::encode_word(std::string_view word, MergeScratch& scratch,
                                   std::vector<int32_t>& ids) const {
  if (!whole_.empty()) {
    if (const auto found = whole_.find(word); found != whole_.end()) return ids.push_back(found->second);
  }
  scratch.symbols.clear();
  for (const char byte : word) scratch.symbols.push_back(byte_ids_[uint8_t(byte)]);
  merges_.apply(scratch);
  ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
}

bool ByteLevelEncoder::encode(std::string_view text, MergeScratch& scratch, std::vector<int32_t>& ids) const {
  auto& kinds = scratch.kinds;
  auto& offsets = scratch.offsets;
  kinds.clear();
  offsets.clear();
  for (size_t place = 0; place < text.size();) {
    offsets.push_back(uint32_t(place));
    const uint32_t character = next_character(text, place);
    if (character >= kinds_.size() || kinds_[character] == kUnknown) return false;
    kinds.push_back(kinds_[character]);
  }
  offsets.push_back(uint32_t(text.size()));
  const size_t count = kinds.size();
  const auto kind = [&](size_t place) { return place < count ? kinds[place] & 7 : -1; };
  const auto is_byte = [&](size_t place, char byte) { return text[offsets[place]] == byte; };
  const auto behind = [&](size_t place, auto... wanted) {  // the end of a run of these kinds
    while (((kind(place) == int(wanted)) || ...)) ++place;
    return place;
  };
  const auto contraction = [&](size_t place) -> size_t {  // its length behind the apostrophe, or 0
    const auto letter = [&](size_t at) {
      return at < count && kinds[at] >> 3 ? kContractionLetters[(kinds[at] >> 3) - 1] : ' ';
    };
    const char first = letter(place), second = letter(place + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 1;
    return ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l') ? 2 : 0;
  };
  const auto word_end = [&](size_t start) -> size_t {
    const int first = kind(start);
    if (is_byte(start, '\'')) {
      if (const size_t length = contraction(start + 1)) return start + 1 + length;
    }
    if (first == kLetter) return behind(start, kLetter);
    if (first == kNumber) {
      size_t end = start + 1;
      while (end < start + longest_number_ && kind(end) == kNumber) ++end;
      return end;
    }
    if (first != kNewline && kind(start + 1) == kLetter) return behind(start + 1, kLetter);
    if (first == kOther || (is_byte(start, ' ') && kind(start + 1) == kOther)) {
      return behind(behind(start + 1, kOther), kNewline);
    }
    const size_t end = behind(start, kSpace, kNewline);
    for (size_t last = end; last > start; --last) {
      if (kind(last - 1) == kNewline) return last;
    }
    return end == count || end == start + 1 ? end : end - 1;
  };
  for (size_t start = 0; start < count;) {
    const size_t end = word_end(start);
    encode_word(text.substr(offsets[start], offsets[end] - offsets[start]), scratch, ids);
    start = end;
  }
  return true;
}

SentencePieceEncoder::SentencePieceEncoder(const std::vector<std::string>& pieces,
                                           const std::vector<int32_t>& ranks,
                                           const std::vector<std::string>& user_defined,
                                           const std::vector<int32_t>& byte_ids)
    : num_pieces_(int32_t(pieces.size())),
      symbol_of_(kCodePoints, kNone),
      begins_user_defined_(kCodePoints),
      byte_ids_(byte_ids) {
  HUATUO_CHECK(
      ranks.size() == pieces.size() && user_defined.size() == pieces.size() && byte_ids.size() == 256,
      "wrong number of entries: need one for each of " << pieces.size() << " pieces, and 256 byte_ids");
  std::unordered_map<std::string_view, int32_t> symbols;
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (!pieces[id].empty()) symbols[pieces[id]] = int32_t(id);
  }
  for (const std::string& piece : pieces) {
    for (size_t place = 0; place < piece.size();) {
      const size_t start = place;
      const uint32_t character = next_character(piece, place);
      if (symbol_of_[character] != kNone) continue;
      const std::string_view text = std::string_view(piece).substr(start, place - start);
      const auto [found, is_new] = symbols.try_emplace(text, num_pieces_ + int32_t(characters_.size()));
      if (is_new) characters_.push_back(character);
      symbol_of_[character] = found->second;
    }
  }
  std::vector<Merge> merges;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const std::string_view piece = pieces[id];
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      const auto first = symbols.find(piece.substr(0, cut)), second = symbols.find(piece.substr(cut));
      if (first != symbols.end() && second != symbols.end()) {
        merges.push_back({first->second, second->second, ranks[id], int32_t(id)});
      }
    }
    if (const std::string& whole = user_defined[id]; !whole.empty()) {
      user_defined_[characters_of(whole)[0]].emplace_back(whole, int32_t(id));
    }
  }
  merges_ = PairMerges(merges);
  for (auto& [character, found] : user_defined_) {
    begins_user_defined_[character] = true;
    std::sort(found.begin(), found.end(),
              [](auto& one, auto& other) { return one.first.size() > other.first.size(); });
  }
}

void SentencePieceEncoder::append_bytes(uint32_t character, std::vector<int32_t>& ids) const {
  const auto append = [&](uint32_t byte) { ids.push_back(byte_ids_[byte]); };
  const auto rest = [&](int shift) { append(0x80 | (character >> shift & 0x3F)); };
  if (character < 0x80) return append(character);
  if (character < 0x800) return append(0xC0 | character >> 6), rest(0);
  if (character < 0x10000) return append(0xE0 | character >> 12), rest(6), rest(0);
  append(0xF0 | character >> 18), rest(12), rest(6), rest(0);
}

void SentencePieceEncoder::finish_run(MergeScratch& scratch, std::vector<int32_t>& ids) const {
  merges_.apply(scratch);
  for (const int32_t symbol : scratch.symbols) {
    if (symbol < num_pieces_) {
      ids.push_back(symbol);
    } else {
      append_bytes(characters_[size_t(symbol - num_pieces_)], ids);
    }
  }
  scratch.symbols.clear();
}

bool SentencePieceEncoder::encode(std::string_view text, MergeScratch& scratch,
                                  std::vector<int32_t>& ids) const {
  scratch.symbols.clear();
  for (size_t place = 0; place < text.size();) {
    const size_t start = place;
    uint32_t character = next_character(text, place);
    if (begins_user_defined_[character]) {
      const auto& known = user_defined_.at(character);
      const auto found = std::find_if(known.begin(), known.end(), [&](auto& one) {
        return text.compare(start, one.first.size(), one.first) == 0;
      });
      if (found != known.end()) {
        finish_run(scratch, ids);
        ids.push_back(found->second);
        place = start + found->first.size();
        continue;
      }
    }
    if (character == ' ') character = kSpaceMark;
    if (symbol_of_[character] != kNone) {
      scratch.symbols.push_back(symbol_of_[character]);
    } else {
      finish_run(scratch, ids);
      append_bytes(character, ids);
    }
  }
  finish_run(scratch, ids);
  return true;
}

}  // namespace huatuo
