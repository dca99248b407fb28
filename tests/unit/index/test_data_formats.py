"""docs/data_formats.md says what the code does: its worked numbers are read from the page and made again."""

import json
import re
from pathlib import Path

import numpy as np

from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.formats.format_table import FormatSettings
from megatron_huatuo.index.register import register_index
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.indexed_writer import IndexedWriter
from tests.unit.dataset.hand_rows import targets_of

PAGE = (Path(__file__).parents[3] / "docs/data_formats.md").read_text(encoding="utf-8")
EOS = 2


def read_table():
    """Columns t, token, mode, label, loss_mask of the chat format's table."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `.+` \| ([01]) \| (\d+) \| ([01]) \|$", PAGE, re.MULTILINE)
    return np.array(rows, dtype=np.int64).T


def test_the_tables_labels_follow_from_its_tokens_and_modes():
    place, tokens, modes, labels, loss_mask = read_table()
    assert place.tolist() == list(range(32))
    found = targets_of(tokens.tolist(), modes.tolist())
    assert list(found) == [tokens.tolist(), labels.tolist(), loss_mask.tolist()]
    assert "takes 32 places and has 7 targets" in PAGE and loss_mask.sum() == 7
    cut_tokens, _, cut_mask = targets_of(tokens.tolist(), modes.tolist(), seq_length=16)
    assert cut_tokens == [*tokens[:15], EOS]
    assert sum(cut_mask) == 4 and "its 4 first targets stay" in PAGE


def test_the_index_of_the_page_is_written_byte_by_byte(tmp_path):
    _, tokens, modes, _, _ = read_table()
    bounds = [0, *(np.flatnonzero(np.diff(modes)) + 1), len(modes)]
    lengths = np.diff(bounds)
    with IndexedWriter(tmp_path / "p", 125696) as writer:
        writer.add_documents(tokens, lengths, modes[bounds[:-1]], np.array([len(lengths)]))
        manifest = writer.finish()
    dump = re.search(r"```hexdump\n(.+?)```", PAGE, re.DOTALL)[1]
    assert (tmp_path / "p.idx").read_bytes() == bytes.fromhex(dump)
    reader = IndexedReader(tmp_path / "p")
    for array in (reader.sequence_lengths, reader.sequence_pointers, reader.document_indices, reader.sequence_modes):
        assert f"| {' '.join(map(str, array.tolist()))} |" in PAGE
    assert manifest["files"]["p.bin"]["bytes"] == 128 and manifest["files"]["p.idx"]["bytes"] == 102
    assert manifest["trained_tokens"] == 7


def test_the_published_tokenizer_gives_the_table(tmp_path, baichuan2):
    record = next(line for line in PAGE.splitlines() if line.startswith('{"id": "s1"'))
    (tmp_path / "a.jsonl").write_text(record + "\n", encoding="utf-8")
    build_index([tmp_path / "a.jsonl"], tmp_path / "p", baichuan2)
    tokens, modes = IndexedReader(tmp_path / "p").document(0)
    assert [tokens.tolist(), modes.tolist()] == read_table()[1:3].tolist()


def test_the_page_explains_every_key_of_the_manifest(tmp_path, by_hand):
    line = {"conversations": [{"from": "human", "value": "头"}, {"from": "gpt", "value": "痛"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text('{"text": "头痛"}', encoding="utf-8")
    template = "{% for m in messages %}{{ m.content + (eos_token if m.role == 'assistant' else '') }}{% endfor %}"
    (by_hand / "chat_template.jinja").write_text(template, encoding="utf-8")
    manifest = build_index([tmp_path / "a.jsonl"], tmp_path / "p", by_hand)
    manifest |= build_index(
        [tmp_path / "a.jsonl"], tmp_path / "n", by_hand, settings=FormatSettings(chat_format="native")
    )
    manifest |= build_index([tmp_path / "t.jsonl"], tmp_path / "t", by_hand, settings=FormatSettings("text"))
    (tmp_path / "t.json").unlink()
    manifest |= register_index(tmp_path / "t", by_hand)
    section = PAGE.split("**`P.json`**")[1].split("**Opening**")[0]
    explained = {
        key for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    assert explained == set(manifest)
