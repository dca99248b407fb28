// Byte pair encoding: neighbouring symbols of a text become one, the pair of the lowest rank first, the
// leftmost of equals. Two ways to symbols: bytes of the words of a pattern (ByteLevelEncoder), and characters
// (SentencePieceEncoder).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace huatuo {

// Working memory of one thread.
struct MergeScratch {
  std::vector<int32_t> symbols;
  std::vector<int32_t> left, right, rank, merged;  // [symbol] its neighbours, and the pair that it begins
  std::vector<uint64_t> heap;                      // rank << 32 | symbol, the smallest on top
  std::vector<uint8_t> kinds;                      // [character]
  std::vector<uint32_t> offsets;                   // [character + 1] in bytes
};

struct Merge {
  int32_t left, right, rank, merged;
};

class PairMerges {
 public:
  PairMerges() = default;
  explicit PairMerges(const std::vector<Merge>& merges);  // of equal pairs, the last counts
  void apply(MergeScratch& scratch) const;                // to scratch.symbols

 private:
  struct Pair {
    uint64_t key;
    int32_t rank, merged;
  };
  const Pair* find(uint64_t key) const;
  size_t slot(uint64_t key) const;

  int shift_ = 0;
  std::vector<Pair> pairs_;
};

class PairEncoder {
 public:
  virtual ~PairEncoder() = default;
  // Appends the ids of a text of valid UTF-8; false for one that the encoder does not know how to encode.
  virtual bool encode(std::string_view text, MergeScratch& scratch, std::vector<int32_t>& ids) const = 0;
};

// What a character is to the pattern, in the lower three bits; above them the letter that it is in a
// contraction whatever its case ('s 't 're 've 'm 'll 'd), numbered by kContractionLetters from 1, or 0.
enum Kind : uint8_t { kOther, kLetter, kNumber, kSpace, kNewline, kUnknown };
constexpr std::string_view kContractionLetters = "stremvld";

// The words of the pattern of Qwen2 and Llama 3, by Oniguruma's rules:
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,longest_number}| ?[^\s\p{L}\p{N}]+[\r\n]*
//   |\s*[\r\n]+|\s+(?!\S)|\s+
class ByteLevelEncoder : public PairEncoder {
 public:
  // pieces: bytes of each id, empty where it has none. merges: [number][left, right, merged] by rank.
  // kinds: [code point], unknown behind its end. prefer_whole: a word that is a piece is that piece, whatever
  // merges give.
  ByteLevelEncoder(const std::vector<std::string>& pieces, const int32_t* merges, size_t num_merges,
                   std::vector<uint8_t> kinds, int64_t longest_number, bool prefer_whole);
  bool encode(std::string_view text, MergeScratch& scratch, std::vector<int32_t>& ids) const override;

 private:
  void encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const;

  PairMerges merges_;
  std::array<int32_t, 256> byte_ids_;
  std::vector<uint8_t> kinds_;
  size_t longest_number_;
  std::vector<std::pair<std::string, int32_t>> not_merged_;  // preferred pieces that merges do not give
  std::unordered_map<std::string_view, int32_t> whole_;      // the same by text
};

// A SentencePiece model of the BPE kind without normalisation: a space is U+2581, a user-defined piece is cut
// out first, the longest, and a character that is no piece becomes its bytes.
class SentencePieceEncoder : public PairEncoder {
 public:
  // pieces: text of each normal piece, empty for others; ranks: [id], lower merges first; user_defined: [id]
  // or empty.
  SentencePieceEncoder(const std::vector<std::string>& pieces, const std::vector<int32_t>& ranks,
                       const std::vector<std::string>& user_defined, const std::vector<int32_t>& byte_ids);
  bool encode(std::string_view text, MergeScratch& scratch, std::vector<int32_t>& ids) const override;

 private:
  void finish_run(MergeScratch& scratch, std::vector<int32_t>& ids) const;
  void append_bytes(uint32_t character, std::vector<int32_t>& ids) const;

  PairMerges merges_;
  int32_t num_pieces_;
  std::vector<int32_t> symbol_of_;  // [code point] an id, a number behind them, or -1 for one in no piece
  std::vector<bool> begins_user_defined_;  // [code point]
  std::vector<uint32_t> characters_;       // of the symbols behind the ids: no pieces by themselves
  std::vector<int32_t> byte_ids_;          // [256]
  // By first character, the longest first.
  std::unordered_map<uint32_t, std::vector<std::pair<std::string, int32_t>>> user_defined_;
};

}  // namespace huatuo
