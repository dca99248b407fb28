#include "assemble_rows.h"

#include <algorithm>
#include <cstring>

#include "check.h"

namespace huatuo {

namespace {

constexpr int64_t kKeep = -1;
constexpr int64_t kPaddingSource = -1;
enum Follows { kNothing, kContext, kTrained };

template <typename T>
T load(const char* array, int64_t place) {
  T value;
  std::memcpy(&value, array + place * int64_t(sizeof(T)), sizeof(T));
  return value;
}

int64_t load_token(const DocumentSource& from, int64_t place) {
  return from.wide_tokens ? load<int32_t>(from.tokens, place) : load<uint16_t>(from.tokens, place);
}

template <typename T>
void widen(const char* tokens, int64_t start, int64_t count, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = load<T>(tokens, start + i);
}

// Place in .bin of the first token of a sequence; num_sequences stands for the end.
int64_t token_of(const DocumentSource& from, int64_t sequence) {
  if (sequence >= from.num_sequences) return from.num_tokens;
  return load<int64_t>(from.sequence_pointers, sequence) / (from.wide_tokens ? 4 : 2);
}

}  // namespace

// A document, or a piece of one, as a row takes it.
struct RowAssembler::Document {
  const DocumentSource* from;
  int64_t source;
  int64_t first, last;  // its sequences
  int64_t start;        // its first token in .bin
  int64_t length;       // tokens in the row
  int64_t full;         // tokens from `start` to the document's end
};

RowAssembler::RowAssembler(int64_t seq_length, int64_t pad_id) : seq_length_(seq_length), pad_id_(pad_id) {
  HUATUO_CHECK(seq_length >= 1 && seq_length < 1ll << 31,
               "wrong seq_length: got " << seq_length << ", need 1 to 2^31 - 1");
}

void RowAssembler::add_source(const DocumentSource& source) { sources_.push_back(source); }

RowAssembler::Document RowAssembler::find(int64_t source, int64_t number) const {
  HUATUO_CHECK(source >= 0 && source < int64_t(sources_.size()),
               "no source " << source << ": the blend has " << sources_.size());
  const DocumentSource& from = sources_[size_t(source)];
  const int64_t count =
      from.piece_start ? load<int64_t>(from.piece_start, from.num_documents) : from.num_documents;
  HUATUO_CHECK(number >= 0 && number < count,
               "no document " << number << ": source " << source << " has " << count);
  int64_t document = number, offset = 0;
  if (from.piece_start) {
    int64_t low = 0, high = from.num_documents;  // the last document whose first piece is not after `number`
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (load<int64_t>(from.piece_start, middle) <= number ? low : high) = middle;
    }
    document = low;
    offset = (number - load<int64_t>(from.piece_start, low)) * seq_length_;
  }
  Document found{};
  found.from = &from;
  found.source = source;
  found.first = load<int64_t>(from.document_indices, document);
  found.last = load<int64_t>(from.document_indices, document + 1);
  HUATUO_CHECK(found.first >= 0 && found.first <= found.last && found.last <= from.num_sequences,
               "torn index: document " << document << " of source " << source << " has sequences "
                                       << found.first << " to " << found.last << " of "
                                       << from.num_sequences);
  found.start = token_of(from, found.first) + offset;
  const int64_t end = token_of(from, found.last);
  found.full = end - found.start;
  found.length = std::min(found.full, seq_length_);
  HUATUO_CHECK(found.start >= 0 && found.length >= 1 && end <= from.num_tokens,
               "empty or torn document: number " << number << " of source " << source << " has tokens "
                                                 << found.start << " to " << end << " of "
                                                 << from.num_tokens);
  return found;
}

// Writes the places of a document; `out` points to its first one.
void RowAssembler::place(const Document& document, const RowOutput& out) const {
  const DocumentSource& from = *document.from;
  const int64_t length = document.length;
  if (from.wide_tokens) {
    widen<int32_t>(from.tokens, document.start, length, out.tokens);
  } else {
    widen<uint16_t>(from.tokens, document.start, length, out.tokens);
  }
  const bool goes_on = document.full > length;
  if (goes_on && !from.piece_start && from.cut_token != kKeep) out.tokens[length - 1] = from.cut_token;
  std::memcpy(out.labels, out.tokens + 1, size_t(length - 1) * sizeof(int64_t));
  std::fill_n(out.source_of_token, length, document.source);
  if (from.piece_start) {  // one segment, trained on; where the document goes on, so does the last label
    std::fill_n(out.loss_mask, length, 1.0f);
    out.labels[length - 1] =
        goes_on ? load_token(from, document.start + length) : from.last_label[1][kNothing];
    out.loss_mask[length - 1] = goes_on || from.last_counts[1][kNothing] ? 1.0f : 0.0f;
    return;
  }
  int64_t placed = 0;
  for (int64_t sequence = document.first; sequence < document.last && placed < length; ++sequence) {
    const int64_t stored = load<int32_t>(from.sequence_lengths, sequence);
    HUATUO_CHECK(stored >= 1, "sequence " << sequence << " of source " << document.source << " has no token");
    const int64_t kept = std::min(stored, length - placed);
    const int mode = from.sequence_modes[sequence * from.mode_stride] == 1;
    placed += kept;
    const bool more = sequence + 1 < document.last && placed < length;
    const bool trained_next = more && from.sequence_modes[(sequence + 1) * from.mode_stride] == 1;
    const Follows follows = !more ? kNothing : trained_next ? kTrained : kContext;
    std::fill_n(out.loss_mask + placed - kept, kept - 1, float(mode));
    out.loss_mask[placed - 1] = float(from.last_counts[mode][follows]);
    const int64_t label = from.last_label[mode][follows];
    if (label != kKeep) out.labels[placed - 1] = label;
  }
  HUATUO_CHECK(placed == length, "torn index: a document of source " << document.source << " has " << placed
                                                                     << " tokens by its sequences' lengths, "
                                                                     << length << " by their places");
}

void RowAssembler::assemble(const int64_t* source, const int64_t* number, const int64_t* row_start,
                            int64_t num_rows, const RowOutput& out, std::vector<int32_t>& bounds) const {
  HUATUO_CHECK(num_rows * seq_length_ < 1ll << 31,
               "too many places: got " << num_rows << " rows of " << seq_length_ << ", need fewer than 2^31");
  std::vector<Document> documents;
  for (int64_t row = 0; row < num_rows; ++row) {
    documents.clear();
    int64_t tokens = 0;
    for (int64_t entry = row_start[row]; entry < row_start[row + 1]; ++entry) {
      documents.push_back(find(source[entry], number[entry]));
      tokens += documents.back().length;
    }
    HUATUO_CHECK(tokens <= seq_length_, "row overflows: got " << tokens << " tokens, need at most "
                                                              << seq_length_
                                                              << ". Build the blend again from this index.");
    int64_t at = row * seq_length_;
    for (const Document& document : documents) {
      bounds.push_back(int32_t(at));
      place(document, {out.tokens + at, out.labels + at, out.loss_mask + at, out.source_of_token + at});
      at += document.length;
    }
    const int64_t padding = (row + 1) * seq_length_ - at;
    if (padding > 0) bounds.push_back(int32_t(at));
    std::fill_n(out.tokens + at, padding, pad_id_);
    std::fill_n(out.labels + at, padding, pad_id_);
    std::fill_n(out.loss_mask + at, padding, 0.0f);
    std::fill_n(out.source_of_token + at, padding, kPaddingSource);
  }
  bounds.push_back(int32_t(num_rows * seq_length_));
}

std::vector<int64_t> loss_positions(const float* loss_mask, int64_t num_rows, int64_t seq_length,
                                    int64_t multiple) {
  HUATUO_CHECK(multiple >= 1, "wrong multiple: got " << multiple << ", need at least 1");
  const int64_t places = num_rows * seq_length;
  int64_t trained = 0;
  for (int64_t i = 0; i < places; ++i) trained += loss_mask[i] > 0;
  const int64_t wanted =
      std::min(places, std::max<int64_t>(1, (trained + multiple - 1) / multiple) * multiple);
  int64_t others = wanted - trained;
  std::vector<int64_t> positions;
  positions.reserve(size_t(wanted));
  for (int64_t place = 0; place < seq_length; ++place) {
    for (int64_t row = 0; row < num_rows; ++row) {
      const bool is_trained = loss_mask[row * seq_length + place] > 0;
      if (is_trained || others > 0) positions.push_back(place * num_rows + row);
      others -= !is_trained;
    }
  }
  return positions;
}

}  // namespace huatuo
