"""An index that stock Megatron wrote without modes becomes a source of raw text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.errors import ConfigError, DataError, IntegrityError
from megatron_huatuo.index.register import register_index
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.targets import DocumentsInRows

EOS = 2


def write_stock(prefix: Path, documents: list[list[list[int]]], dtype: type = np.uint16) -> Path:
    """Written by megatron-core's own builder: documents of sequences of ids, as tools/preprocess_data.py of Megatron-LM."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        for ids in sequences:
            builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


DOCUMENTS = [[[11, 12, 13], [14, 15, EOS]], [[21, EOS]], [[31, 32, EOS]]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_stock_index_is_raw_text_once_it_is_registered(tmp_path: Path, trained: Path, dtype: type) -> None:
    prefix = write_stock(tmp_path / "stock", DOCUMENTS, dtype)
    with pytest.raises(IntegrityError, match=r"index has no sequence modes: .*stock.idx.*tools/register_index.py"):
        IndexedReader(prefix)
    manifest = register_index(prefix, trained)
    assert manifest["documents"] == 3 and manifest["tokens"] == 11 and manifest["trained_tokens"] == 8
    assert manifest["documents_with_eos"] == 3 and "every token is trained on" in manifest["assumed"]
    reader = IndexedReader(prefix)
    reader.verify()
    assert [part.tolist() for part in reader.document(0)] == [[11, 12, 13, 14, 15, EOS], [1] * 6]
    here = DocumentsInRows(reader, 4)
    assert [here.read(number)[0].tolist() for number in range(len(here))] == [
        [11, 12, 13, 14], [15, EOS], [21, EOS], [31, 32, EOS],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"index has a manifest already: .*stock.json"):
        register_index(prefix, trained)


def test_an_index_of_another_tokenizer_is_refused(tmp_path: Path, trained: Path) -> None:
    too_large = load_tokenizer(trained).vocab_size
    prefix = write_stock(tmp_path / "stock", [[[5, too_large, EOS]]])
    with pytest.raises(
        DataError, match=rf"index is of another tokenizer: .*stock.bin holds id {too_large}, .* below {too_large}"
    ):
        register_index(prefix, trained)
    assert not (tmp_path / "stock.json").exists()
    negative = write_stock(tmp_path / "negative", [[[5, -1, EOS]]], np.int32)
    with pytest.raises(DataError, match="index holds a negative id"):
        register_index(negative, trained)


def test_documents_without_an_end_are_accepted_on_request_alone(tmp_path: Path, trained: Path) -> None:
    prefix = write_stock(tmp_path / "stock", [[[5, 6]], [[7, EOS]]])
    with pytest.raises(DataError, match="documents end without the end-of-document id 2: 1 of 2 in"):
        register_index(prefix, trained)
    tool = [sys.executable, "tools/register_index.py", "--input-prefix", str(prefix), "--tokenizer", str(trained)]
    done = subprocess.run([*tool, "--without-eos"], capture_output=True, text=True)
    assert done.returncode == 0 and "assumed: every token is trained on" in done.stderr, done.stderr
    assert (IndexedReader(prefix).manifest or {})["documents_with_eos"] == 1


def test_a_torn_stock_index_is_refused(tmp_path: Path, trained: Path) -> None:
    prefix = write_stock(tmp_path / "stock", DOCUMENTS)
    index = (tmp_path / "stock.idx").read_bytes()
    (tmp_path / "stock.idx").write_bytes(index[:-1])
    with pytest.raises(IntegrityError, match=r"file is incomplete or swapped: .*stock.idx"):
        register_index(prefix, trained)
    (tmp_path / "stock.idx").write_bytes(index)
    register_index(prefix, trained)
    (tmp_path / "stock.bin").write_bytes((tmp_path / "stock.bin").read_bytes()[:-2])
    with pytest.raises(IntegrityError, match=r"stock\.bin"):
        IndexedReader(prefix)
