"""Raw text: documents as they are, every token trained on, eos at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.formats.format_table import FormatSettings
from megatron_huatuo.index.merge import merge_indexes
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage.indexed import IndexedReader

TEXT = FormatSettings("text")
LONG = "高血压是动脉血压持续升高的慢性病。\n" * 40
RECORDS = [
    {"id": "1", "source": "web", "language": "zh", "title": "高血压", "text": LONG},
    {"id": "2", "source": "web", "language": "en", "text": "  Aspirin 100 mg</s> <问>："},
    {"text": "只有文字"},
    {"id": "4", "source": "books", "language": "zh", "text": " \n"},
]


def write_lines(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_text_is_indexed_as_it_is(tmp_path: Path, trained: Path, name: str) -> None:
    write_lines(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "a.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    manifest = build_index([tmp_path / name], tmp_path / "p", trained, settings=TEXT)
    tokenizer, reader = load_tokenizer(trained), IndexedReader(tmp_path / "p")
    assert manifest["chat_format"] == "text" and manifest["documents"] == manifest["conversations"] == 3
    for number, record in enumerate(RECORDS[:3]):
        tokens, modes = reader.document(number)
        assert tokens.tolist() == [*tokenizer.encode(record["text"]), tokenizer.eos_id]
        assert set(modes.tolist()) == {1}
    assert manifest["trained_tokens"] == manifest["tokens"] - 3
    assert manifest["tolerated"] == {"blank text": 1, "key not read: title": 1}
    assert manifest["role_tag_in_text"] == 1 and [reader.origin(n)[1] for n in range(3)] == [1, 2, 3]  # type: ignore[index]


def test_shards_of_texts_are_joined(tmp_path: Path, trained: Path) -> None:
    write_lines(tmp_path / "a.jsonl", RECORDS[:2])
    write_lines(tmp_path / "b.jsonl", RECORDS[2:])
    for name in ("a", "b"):
        build_index([tmp_path / f"{name}.jsonl"], tmp_path / name, trained, settings=TEXT)
    whole = build_index([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "whole", trained, settings=TEXT)
    merged = merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert {key: merged[key] for key in ("chat_format", "trained_tokens", "tolerated")} == {
        key: whole[key] for key in ("chat_format", "trained_tokens", "tolerated")
    }
    build_index([tmp_path / "a.jsonl"], tmp_path / "zh", trained, settings=TEXT, source="web")
    with pytest.raises(DataError, match=r"indexes do not fit together: source of .*/zh is 'web', of .*/a None"):
        merge_indexes([tmp_path / "a", tmp_path / "zh"], tmp_path / "m2")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"id": "1", "title": "x"}, r"record without 'text': got nothing, need text \(.*a.jsonl:1\)"),
        ({"text": None}, "record without 'text': got NoneType, need text"),
        (
            {"conversations": []},
            r"record without 'text': got nothing, need text; it has turns, index it without --format text",
        ),
    ],
)
def test_a_record_without_text_is_bad(tmp_path: Path, trained: Path, record: dict[str, object], reason: str) -> None:
    write_lines(tmp_path / "a.jsonl", [record, {"text": "好"}])
    with pytest.raises(DataError, match=reason):
        build_index([tmp_path / "a.jsonl"], tmp_path / "p", trained, settings=TEXT)
    manifest = build_index([tmp_path / "a.jsonl"], tmp_path / "p", trained, settings=TEXT, max_bad_lines=1)
    assert manifest["documents"] == 1 and manifest["dropped"] == {"record without 'text'": 1}


def test_the_tool_takes_the_formats_by_name(tmp_path: Path, trained: Path) -> None:
    write_lines(tmp_path / "a.jsonl", RECORDS)
    command = [sys.executable, "tools/preprocess_data.py", "--input", str(tmp_path / "a.jsonl"), "--output-prefix"]
    rest = ["--tokenizer", str(trained), "--workers", "1", "--format", "text"]
    done = subprocess.run([*command, str(tmp_path / "p"), *rest], capture_output=True, text=True)
    assert done.returncode == 0 and len(IndexedReader(tmp_path / "p")) == 3, done.stderr
    done = subprocess.run(
        [*command, str(tmp_path / "q"), *rest, "--chat-format", "native"], capture_output=True, text=True
    )
    assert done.returncode != 0 and "wrong --chat-format: got native with --format text" in done.stderr


def test_the_tool_takes_the_settings_of_the_native_format(tmp_path: Path, by_hand: Path) -> None:
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content + (eos_token if m.role == 'assistant' else '') }}{% endfor %}"
    (by_hand / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_lines(tmp_path / "a.jsonl", [{"instruction": "头", "output": "痛"}])
    command = [sys.executable, "tools/preprocess_data.py", "--input", str(tmp_path / "a.jsonl"), "--output-prefix"]
    rest = [str(tmp_path / "p"), "--tokenizer", str(by_hand), "--workers", "1", "--chat-format", "native"]
    own = ["--train-on-thinking", "false", "--template-date", "2026-03-01"]
    done = subprocess.run([*command, *rest, *own], capture_output=True, text=True)
    manifest = json.loads((tmp_path / "p.json").read_text("utf-8")) if done.returncode == 0 else {}
    assert manifest.get("train_on_thinking") is False, done.stderr
    assert manifest["chat_template"]["date"] == "2026-03-01"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"records": "pairs"}, "--format"),
        ({"chat_format": "chatml"}, "--chat-format"),
        ({"records": "text", "chat_format": "huatuo"}, "wrong --chat-format: got huatuo with --format text"),
        ({"train_on_thinking": False}, "wrong --train-on-thinking: got False without --chat-format native"),
        ({"template_date": "2026-03-01"}, "wrong --template-date: got 2026-03-01 without --chat-format native"),
        (
            {"chat_format": "native", "template_date": "1 March"},
            "wrong --template-date: got '1 March', need YYYY-MM-DD",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FormatSettings(**settings)  # type: ignore[arg-type]
