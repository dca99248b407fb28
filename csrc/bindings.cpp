// Registration only: NumPy arrays in, NumPy arrays out, the interpreter lock released around the work.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "assemble_rows.h"
#include "blend_order.h"
#include "check.h"
#include "pack_rows.h"
#include "pair_merges.h"
#include "vector_kernels.h"

namespace py = pybind11;
using namespace huatuo;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
std::vector<T> to_vector(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(py::ssize_t(values.size()), values.data());
}

// Outputs are written in place, so they must have exactly the right type, size and layout.
template <typename Narrow, typename Wide>
void* output_pointer(py::array& array, int64_t size, const char* name, bool& wide) {
  wide = py::isinstance<py::array_t<Wide>>(array);
  HUATUO_CHECK(wide || py::isinstance<py::array_t<Narrow>>(array), "wrong dtype of " << name);
  HUATUO_CHECK(array.ndim() == 1 && array.size() == size && (array.flags() & py::array::c_style),
               "wrong size of " << name << ": got " << array.size() << ", need " << size << " in one piece");
  return array.mutable_data();
}

OrderOutput output(py::array& source, py::array& document, int64_t size) {
  OrderOutput out{};
  out.source = output_pointer<uint8_t, uint16_t>(source, size, "source", out.wide_source);
  out.document = output_pointer<uint32_t, uint64_t>(document, size, "document", out.wide_document);
  return out;
}

OrderPlan make_plan(const Array<int64_t>& num_documents, const Array<int64_t>& num_draws,
                    const Array<int64_t>& first_draw, const Array<uint64_t>& permutation_seeds,
                    const Array<uint32_t>& permutation_streams, const Array<int64_t>& held_back_start,
                    const Array<int64_t>& held_back, const Array<int32_t>& table,
                    const Array<int32_t>& exponent, const Array<uint64_t>& split,
                    const Array<uint64_t>& special, uint64_t seed, int num_threads, int64_t cell_draws) {
  OrderInputs in;
  in.num_documents = to_vector(num_documents);
  in.num_draws = to_vector(num_draws);
  in.first_draw = to_vector(first_draw);
  in.permutation_seeds = to_vector(permutation_seeds);
  in.permutation_streams = to_vector(permutation_streams);
  in.held_back_start = to_vector(held_back_start);
  in.held_back = to_vector(held_back);
  in.table = to_vector(table);
  in.exponent = to_vector(exponent);
  in.split = to_vector(split);
  in.special = to_vector(special);
  in.seed = seed;
  const size_t sources = in.num_documents.size();
  HUATUO_CHECK(sources >= 1 && in.num_draws.size() == sources && in.first_draw.size() == sources &&
                   in.permutation_seeds.size() == sources && in.permutation_streams.size() == sources &&
                   in.held_back_start.size() == sources + 1 && in.table.size() == sources &&
                   in.exponent.size() == sources,
               "wrong number of entries: need one for each of " << sources << " sources");
  for (size_t i = 0; i < sources; ++i) {
    HUATUO_CHECK(in.num_draws[i] >= 0 && in.num_draws[i] <= 1ll << 37, "wrong number of draws of source "
                                                                           << i << ": got " << in.num_draws[i]
                                                                           << ", need 0 to 2^37");
    HUATUO_CHECK(in.num_draws[i] == 0 || in.num_documents[i] >= 1,
                 "source " << i << " has draws but no documents");
    HUATUO_CHECK(in.table[i] >= 0 && size_t(in.table[i] + 1) * kSplitEntries <= in.split.size() &&
                     size_t(in.table[i] + 1) * kSpecialEntries <= in.special.size(),
                 "wrong table number of source " << i);
  }
  const py::gil_scoped_release release;
  return OrderPlan(std::move(in), num_threads, cell_draws);
}

void order(const OrderPlan& plan, int64_t start, int64_t stop, py::array source, py::array document,
           int num_threads) {
  const OrderOutput out = output(source, document, stop - start);
  const py::gil_scoped_release release;
  plan.order(start, stop, out, num_threads);
}

py::tuple order_cuda(const OrderPlan& plan, int64_t start, int64_t stop, py::array source,
                     py::array document) {
  const OrderOutput out = output(source, document, stop - start);
  std::string reason;
  double seconds = 0;
  bool done = false;
  {
    const py::gil_scoped_release release;
#ifdef MEGATRON_HUATUO_CUDA
    done = order_on_gpu(plan, start, stop, out, reason, seconds);
#else
    static_cast<void>(plan), static_cast<void>(out);
    reason = "the kernel was built without CUDA";
#endif
  }
  return py::make_tuple(done, reason, seconds);
}

template <typename Length>
py::tuple add_to(RowPacker& packer, const Array<Length>& lengths) {
  py::array_t<int64_t> order(packer.pending() + lengths.size());
  std::vector<int64_t> row_start;
  int64_t* out = order.mutable_data();
  int64_t placed = 0;
  {
    const py::gil_scoped_release release;
    placed = packer.add(lengths.data(), lengths.size(), out, row_start);
  }
  order.resize({placed});
  return py::make_tuple(order, to_array(row_start));
}

py::tuple add_rows(RowPacker& packer, const py::array& lengths) {
  HUATUO_CHECK(lengths.ndim() == 1, "wrong document_lengths: need one dimension");
  if (py::isinstance<py::array_t<int32_t>>(lengths)) return add_to<int32_t>(packer, lengths);
  return add_to<int64_t>(packer, lengths);
}

py::tuple finish_rows(RowPacker& packer) {
  py::array_t<int64_t> order(packer.pending());
  std::vector<int64_t> row_start;
  packer.finish(order.mutable_data(), row_start);
  return py::make_tuple(order, to_array(row_start));
}

// A view of an array that is read where it lies; arrays of an .idx file are not aligned.
template <typename T>
const char* view(const py::array& array, int64_t size, const char* name) {
  HUATUO_CHECK(py::isinstance<py::array_t<T>>(array), "wrong dtype of " << name);
  HUATUO_CHECK(
      array.ndim() == 1 && array.shape(0) == size && (size < 2 || array.strides(0) == py::ssize_t(sizeof(T))),
      "wrong size of " << name << ": got " << array.size() << ", need " << size << " in one piece");
  return static_cast<const char*>(array.data());
}

void add_source(RowAssembler& assembler, const py::array& tokens, const py::array& sequence_lengths,
                const py::array& sequence_pointers, const py::array& sequence_modes,
                const py::array& document_indices, const std::optional<py::array>& piece_start,
                const Array<int64_t>& last_label, const Array<bool>& last_counts, int64_t cut_token) {
  DocumentSource source{};
  source.wide_tokens = py::isinstance<py::array_t<int32_t>>(tokens);
  source.num_tokens = tokens.size();
  source.tokens = source.wide_tokens ? view<int32_t>(tokens, tokens.size(), "tokens")
                                     : view<uint16_t>(tokens, tokens.size(), "tokens");
  source.num_sequences = sequence_lengths.size();
  source.sequence_lengths = view<int32_t>(sequence_lengths, source.num_sequences, "sequence_lengths");
  source.sequence_pointers = view<int64_t>(sequence_pointers, source.num_sequences, "sequence_pointers");
  // All modes are one and the same byte where an index stores none.
  HUATUO_CHECK(py::isinstance<py::array_t<int8_t>>(sequence_modes) && sequence_modes.ndim() == 1 &&
                   sequence_modes.size() == source.num_sequences,
               "wrong sequence_modes: need int8 [" << source.num_sequences << "]");
  source.sequence_modes = static_cast<const char*>(sequence_modes.data());
  source.mode_stride = sequence_modes.strides(0);
  HUATUO_CHECK(document_indices.size() >= 1, "wrong document_indices: need at least one");
  source.num_documents = document_indices.size() - 1;
  source.document_indices = view<int64_t>(document_indices, source.num_documents + 1, "document_indices");
  if (piece_start) source.piece_start = view<int64_t>(*piece_start, source.num_documents + 1, "piece_start");
  HUATUO_CHECK(last_label.size() == 6 && last_counts.size() == 6,
               "wrong size of last_label or last_counts: need [2, 3]");
  std::copy_n(last_label.data(), 6, &source.last_label[0][0]);
  std::copy_n(last_counts.data(), 6, &source.last_counts[0][0]);
  source.cut_token = cut_token;
  assembler.add_source(source);
}

template <typename T>
T* row_pointer(py::array_t<T>& array, const RowAssembler& assembler, int64_t rows, const char* name) {
  HUATUO_CHECK(
      array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == assembler.seq_length() &&
          (array.flags() & py::array::c_style),
      "wrong shape of " << name << ": need [" << rows << ", " << assembler.seq_length() << "] in one piece");
  return array.mutable_data();
}

py::array_t<int32_t> assemble(const RowAssembler& assembler, const Array<int64_t>& source,
                              const Array<int64_t>& number, const Array<int64_t>& row_start,
                              py::array_t<int64_t>& tokens, py::array_t<int64_t>& labels,
                              py::array_t<float>& loss_mask, py::array_t<int64_t>& source_of_token) {
  const int64_t rows = row_start.size() - 1, entries = source.size();
  HUATUO_CHECK(rows >= 0 && number.size() == entries, "wrong size of source, number or row_start");
  const int64_t* starts = row_start.data();
  HUATUO_CHECK(starts[0] == 0 && starts[rows] == entries && std::is_sorted(starts, starts + rows + 1),
               "wrong row_start: need ascending numbers from 0 to " << entries);
  const RowOutput out{row_pointer(tokens, assembler, rows, "tokens"),
                      row_pointer(labels, assembler, rows, "labels"),
                      row_pointer(loss_mask, assembler, rows, "loss_mask"),
                      row_pointer(source_of_token, assembler, rows, "source_of_token")};
  std::vector<int32_t> bounds;
  {
    const py::gil_scoped_release release;
    assembler.assemble(source.data(), number.data(), starts, rows, out, bounds);
  }
  return to_array(bounds);
}

py::array_t<int64_t> find_loss_positions(const Array<float>& loss_mask, int64_t multiple) {
  HUATUO_CHECK(loss_mask.ndim() == 2, "wrong loss_mask: need two dimensions");
  std::vector<int64_t> positions;
  {
    const py::gil_scoped_release release;
    positions = loss_positions(loss_mask.data(), loss_mask.shape(0), loss_mask.shape(1), multiple);
  }
  return to_array(positions);
}

std::unique_ptr<ByteLevelEncoder> make_byte_level(const std::vector<std::string>& pieces,
                                                  const Array<int32_t>& merges, const Array<uint8_t>& kinds,
                                                  int64_t longest_number, bool prefer_whole) {
  HUATUO_CHECK(merges.ndim() == 2 && merges.shape(1) == 3, "wrong merges: need [number, 3]");
  const py::gil_scoped_release release;
  return std::make_unique<ByteLevelEncoder>(pieces, merges.data(), size_t(merges.shape(0)), to_vector(kinds),
                                            longest_number, prefer_whole);
}

py::tuple encode_texts(const PairEncoder& encoder, const std::vector<py::str>& texts) {
  std::vector<std::string_view> views;
  for (const py::str& text : texts) {
    Py_ssize_t size = 0;
    const char* const data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    views.emplace_back(data, size_t(size));
  }
  std::vector<int32_t> ids;
  std::vector<int64_t> ends;
  std::vector<uint8_t> unknown;
  {
    const py::gil_scoped_release release;
    MergeScratch scratch;
    for (const std::string_view view : views) {
      unknown.push_back(!encoder.encode(view, scratch, ids));
      ends.push_back(int64_t(ids.size()));
    }
  }
  return py::make_tuple(to_array(ids), to_array(ends), to_array(unknown));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Kernels of megatron_huatuo: priority order, row packing, row assembly and byte pair encoding. Use "
      ".blend, "
      ".dataset and .index.";
#ifdef MEGATRON_HUATUO_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  m.def("vector_kernels", [] { return std::string(vector_kernels()->name); });
  m.def("use_vector_kernels", &use_vector_kernels, py::arg("name"));
  py::class_<OrderPlan>(m, "OrderPlan")
      .def(py::init(&make_plan), py::kw_only(), py::arg("num_documents"), py::arg("num_draws"),
           py::arg("first_draw"), py::arg("permutation_seeds"), py::arg("permutation_streams"),
           py::arg("held_back_start"), py::arg("held_back"), py::arg("table"), py::arg("exponent"),
           py::arg("split"), py::arg("special"), py::arg("seed"), py::arg("num_threads"),
           py::arg("cell_draws") = 0)
      .def_property_readonly("total", &OrderPlan::total)
      .def_property_readonly("nbytes", &OrderPlan::nbytes)
      .def_property_readonly("num_cells", &OrderPlan::num_cells)
      .def("order", &order, py::arg("start"), py::arg("stop"), py::arg("source"), py::arg("document"),
           py::arg("num_threads"))
      .def("order_cuda", &order_cuda, py::arg("start"), py::arg("stop"), py::arg("source"),
           py::arg("document"))
      .def("counts_before",
           [](const OrderPlan& plan, int64_t position) { return to_array(plan.counts_before(position)); });
  py::class_<RowPacker>(m, "RowPacker")
      .def(py::init<int64_t, int64_t>(), py::arg("seq_length"), py::arg("window"))
      .def("add", &add_rows, py::arg("document_lengths"))
      .def("finish", &finish_rows);
  py::class_<RowAssembler>(m, "RowAssembler")
      .def(py::init<int64_t, int64_t>(), py::arg("seq_length"), py::arg("pad_id"))
      .def("add_source", &add_source, py::kw_only(), py::arg("tokens"), py::arg("sequence_lengths"),
           py::arg("sequence_pointers"), py::arg("sequence_modes"), py::arg("document_indices"),
           py::arg("piece_start"), py::arg("last_label"), py::arg("last_counts"), py::arg("cut_token"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>(),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>())
      .def("assemble", &assemble, py::arg("source"), py::arg("number"), py::arg("row_start"),
           py::arg("tokens").noconvert(), py::arg("labels").noconvert(), py::arg("loss_mask").noconvert(),
           py::arg("source_of_token").noconvert());
  py::class_<PairEncoder>(m, "PairEncoder").def("encode", &encode_texts, py::arg("texts"));
  py::class_<ByteLevelEncoder, PairEncoder>(m, "ByteLevelEncoder")
      .def(py::init(&make_byte_level), py::kw_only(), py::arg("pieces"), py::arg("merges"), py::arg("kinds"),
           py::arg("longest_number"), py::arg("prefer_whole"));
  py::class_<SentencePieceEncoder, PairEncoder>(m, "SentencePieceEncoder")
      .def(py::init<const std::vector<std::string>&, const std::vector<int32_t>&,
                    const std::vector<std::string>&, const std::vector<int32_t>&>(),
           py::kw_only(), py::arg("pieces"), py::arg("ranks"), py::arg("user_defined"), py::arg("byte_ids"));
  m.def("loss_positions", &find_loss_positions, py::arg("loss_mask"), py::arg("multiple"));
}
