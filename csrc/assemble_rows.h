// Rows of tokens, labels and loss masks from indexed documents. What is trained on is decided elsewhere
// (megatron_huatuo/storage/targets.py): this follows its table and copies.
#pragma once

#include <cstdint>
#include <vector>

namespace huatuo {

// Views of one index, which the caller keeps alive. Arrays of an .idx file are not aligned.
struct DocumentSource {
  const char* tokens;  // int32 when wide_tokens, else uint16 [num_tokens]
  bool wide_tokens;
  int64_t num_tokens;
  const char* sequence_lengths;   // int32 [num_sequences]
  const char* sequence_pointers;  // int64 [num_sequences], bytes
  const char* sequence_modes;     // int8 [num_sequences], mode_stride bytes apart
  int64_t mode_stride;
  int64_t num_sequences;
  const char* document_indices;  // int64 [num_documents + 1]
  int64_t num_documents;
  const char* piece_start;   // int64 [num_documents + 1] where documents are drawn in pieces, else null
  int64_t last_label[2][3];  // targets.TargetTable: [mode][what follows], -1 the token that follows
  bool last_counts[2][3];
  int64_t cut_token;  // -1: the stored one
};

// Each has seq_length entries for each row.
struct RowOutput {
  int64_t* tokens;
  int64_t* labels;
  float* loss_mask;
  int64_t* source_of_token;
};

class RowAssembler {
 public:
  RowAssembler(int64_t seq_length, int64_t pad_id);

  void add_source(const DocumentSource& source);
  // Row r holds documents row_start[r] … row_start[r + 1] - 1 of `source` and `number`, padded. `bounds` gets
  // the first place of every document and padding, numbered over all rows, and the number of places.
  void assemble(const int64_t* source, const int64_t* number, const int64_t* row_start, int64_t num_rows,
                const RowOutput& out, std::vector<int32_t>& bounds) const;

  int64_t seq_length() const { return seq_length_; }

 private:
  struct Document;

  Document find(int64_t source, int64_t number) const;
  void place(const Document& document, const RowOutput& out) const;

  int64_t seq_length_, pad_id_;
  std::vector<DocumentSource> sources_;
};

// Every place of loss_mask [num_rows, seq_length] that is not 0, numbered as in [seq_length, num_rows], and
// the first others that make their number a multiple of `multiple`, or all. Ascending.
std::vector<int64_t> loss_positions(const float* loss_mask, int64_t num_rows, int64_t seq_length,
                                    int64_t multiple);

}  // namespace huatuo
