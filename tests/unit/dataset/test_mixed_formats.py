"""Pairs in the recipe's format and in a native one, and raw text, in one blend: rows, counts, provenance, re-planning."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_replan import replan_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.formats.format_table import FormatSettings
from megatron_huatuo.index.train_tokenizer import train_tokenizer
from megatron_huatuo.inspect.show_row import describe_row
from megatron_huatuo.inspect.trace_row import trace_row
from megatron_huatuo.storage.indexed import IndexedReader
from megatron_huatuo.storage.manifest import read_json, sealed
from megatron_huatuo.storage.targets import DocumentsInRows

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ '<s>[' + message.content + ']' }}"
    "{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
SEQ_LENGTH = 48
SENTENCES = [
    "高血压患者应当低盐饮食。",
    "Aspirin 100 mg once daily.",
    "头痛怎么办？多休息！",
    "先用二甲双胍，并定期测量血糖。",
]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs, native and text, of 30 records each; some texts are longer than five rows."""
    root = tmp_path_factory.mktemp("formats")
    pairs, texts = [], []
    for number in range(30):
        question, answer = SENTENCES[number % 4], SENTENCES[(number + 1) % 4] * (1 + number % 5)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"{number} {answer}"}]
        pairs.append({"id": f"p{number}", "source": "sft", "conversations": turns * (1 + number % 2)})
        texts.append(
            {"id": f"t{number}", "source": "web", "language": "zh", "text": f"{number}" + answer * (1 + number % 9)}
        )
    for name, records in (("pairs", pairs), ("texts", texts)):
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (root / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    train_tokenizer([root / "texts.jsonl"], root / "tokenizer", 500)
    (root / "tokenizer/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    for name, file, settings in (
        ("pairs", "pairs", FormatSettings()),
        ("native", "pairs", FormatSettings(chat_format="native")),
        ("text", "texts", FormatSettings("text")),
    ):
        build_index([root / f"{file}.jsonl"], root / "index" / name, root / "tokenizer", workers=1, settings=settings)
    return root


def content(indexes: Path, priority: float = 1.0) -> dict[str, Any]:
    sources = [
        {"name": name, "path_prefix": str(indexes / "index" / name), "priority": weight}
        for name, weight in (("pairs", 1.0), ("native", 2.0), ("text", priority))
    ]
    return {"seq_length": SEQ_LENGTH, "seed": 5, "packing": {"window": 16}, "sources": sources}


@pytest.fixture
def blend(indexes: Path, tmp_path: Path) -> Path:
    return build_blend(parse_blend_config(content(indexes), "test"), tmp_path / "blend")


def test_each_source_keeps_its_own_rule(indexes: Path, blend: Path) -> None:
    rows = PackedRows(blend)
    assert rows.chat_formats == {"pairs": "huatuo2", "native": "native", "text": "text"}
    views = [DocumentsInRows(IndexedReader(indexes / "index" / name), SEQ_LENGTH) for name in rows.source_names]
    for number in range(len(rows)):
        row = rows.row(number)
        for place, (source, document) in enumerate(rows.documents_of(number)):
            start, end = row.document_bounds[place : place + 2]
            found = [part[start:end].tolist() for part in (row.tokens, row.labels, row.loss_mask)]
            assert found == [part.tolist() for part in views[source].read(document)]
            assert set(row.source_of_token[start:end].tolist()) == {source}
    assert rows.tokens_in(0, len(rows)) == sum(int((rows.row(n).source_of_token >= 0).sum()) for n in range(len(rows)))


def test_every_token_of_the_texts_is_learnt_once(indexes: Path, blend: Path) -> None:
    rows, index = PackedRows(blend), IndexedReader(indexes / "index/text")
    learnt: Counter[int] = Counter()
    for number in range(len(rows)):
        row = rows.row(number)
        learnt.update(row.labels[(row.source_of_token == 2) & (row.loss_mask > 0)].tolist())
    expected: Counter[int] = Counter()
    for number in range(len(index)):
        expected.update(index.document(number)[0][1:].tolist())
    assert learnt == expected
    entry = rows.manifest["sources"][2]
    pieces = np.ceil((index.document_lengths() - 1) / SEQ_LENGTH).astype(int)
    assert (entry["num_texts"], entry["num_documents"], entry["drawn_documents"]) == (30, pieces.sum(), pieces.sum())
    assert entry["cut_documents"] == entry["cut_tokens"] == 0 and pieces.max() > 5


def test_a_piece_is_shown_and_traced_to_its_text(indexes: Path, blend: Path) -> None:
    rows = PackedRows(blend)
    index = IndexedReader(indexes / "index/text")
    view = DocumentsInRows(index, SEQ_LENGTH)
    number, document, offset = next(
        (number, int(document[0]), int(offset[0]))
        for number in range(len(rows))
        for source, entry in rows.documents_of(number)
        if source == 2
        and (offset := view.origin_of([entry])[1])[0] > 0
        and (document := view.origin_of([entry])[0]) is not None
    )
    lines = describe_row(blend, number)
    assert any(line.startswith(f"text document {document} from token {offset}: ") for line in lines)
    assert any(
        f"document {document} of {index.path_prefix}: " in line and "texts.jsonl" in line
        for line in trace_row(blend, number)
    )


def test_replanning_keeps_what_was_consumed_and_loses_no_piece(indexes: Path, blend: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"data": {"blend": str(blend)}}))
    config = parse_blend_config(content(indexes, priority=50.0), "new")
    old, new = PackedRows(blend), PackedRows(replan_blend(tmp_path / "run", config, tmp_path / "new", consumed_rows=10))
    assert [new.documents_of(row) for row in range(10)] == [old.documents_of(row) for row in range(10)]
    drawn = [Counter(entry for row in range(len(rows)) for entry in rows.documents_of(row)) for rows in (old, new)]
    assert drawn[0] == drawn[1] and set(drawn[0].values()) == {1}


def test_an_index_that_changes_its_format_is_refused(indexes: Path, blend: Path, tmp_path: Path) -> None:
    manifest = indexes / "index/native.json"
    kept = manifest.read_bytes()
    try:
        changed = {**read_json(manifest), "chat_format": "text"}
        manifest.write_text(json.dumps(sealed(changed)))
        with pytest.raises(
            IntegrityError, match=r"source native changed since .*: format of .*, got text, need native"
        ):
            PackedRows(blend)
    finally:
        manifest.write_bytes(kept)


def test_a_native_index_says_what_it_was_made_with(indexes: Path, tmp_path: Path) -> None:
    manifest = read_json(indexes / "index/native.json")
    assert manifest["chat_format"] == "native" and manifest["train_on_thinking"] is True
    template = manifest["chat_template"]
    assert template["text"] == TEMPLATE and template["date"] is None and template["end_tokens"] == ["</s>"]
    assert manifest["template"]["mismatched"] == 0 and manifest["template"]["checked"] == 30
    assert manifest["answers_joined_to_template"] == 0 and manifest["dropped"] == {}


def test_a_conversation_that_the_template_refuses_is_a_bad_line(indexes: Path, tmp_path: Path) -> None:
    shutil.copytree(indexes / "tokenizer", tmp_path / "t")
    (tmp_path / "t/chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
    )
    turns = [{"role": "user", "content": "头痛"}, {"role": "assistant", "content": "休息"}]
    lines = [{"messages": turns}, {"messages": [{"role": "system", "content": "医生"}, *turns]}, {"messages": turns}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = FormatSettings(chat_format="native")
    reason = r"it has no place for a system turn \(System role not supported\) \(.*a.jsonl:2\)"
    with pytest.raises(DataError, match=rf"bad line: chat template does not take this conversation: {reason}"):
        build_index([tmp_path / "a.jsonl"], tmp_path / "p", tmp_path / "t", workers=1, settings=settings)
    manifest = build_index(
        [tmp_path / "a.jsonl"], tmp_path / "p", tmp_path / "t", workers=1, settings=settings, max_bad_lines=1
    )
    assert manifest["documents"] == 2 and [bad["line"] for bad in manifest["bad_lines"]] == [2]
