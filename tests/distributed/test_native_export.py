"""Trained with its tokenizer's own chat template, exported, asked and examined: one template from the index to the reply."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.blend.blend_build import build_blend
from megatron_huatuo.blend.blend_settings import parse_blend_config
from megatron_huatuo.convert.publish import export_checkpoint
from megatron_huatuo.convert.verify import verify_export
from megatron_huatuo.dataset.rows import PackedRows
from megatron_huatuo.errors import DataError
from megatron_huatuo.evaluate.answering.chat_model import ChatModel
from megatron_huatuo.evaluate.chat import ChatSession
from megatron_huatuo.evaluate.exam import run_exam
from megatron_huatuo.evaluate.generate import GenerationSettings, ReplySettings
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.formats.format_table import FormatSettings
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage.run_files import resolve_checkpoint
from tests.unit.convert.small_models import SMALL, write_model
from tests.unit.convert.test_native_export import CHATML, VALUES, chatml_tokenizer

SOURCES = {
    "pairs": FormatSettings(),
    "native": FormatSettings(chat_format="native"),
    "notes": FormatSettings("text"),
}


def _index(root: Path, name: str, tokenizer: Path) -> Path:
    records: list[dict[str, Any]] = []
    for number in range(12):
        question, answer = VALUES[number % 4], f"{number} {VALUES[(number + 1) % 4]}"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        text = {"id": f"n{number}", "source": name, "language": "zh", "text": question + answer}
        pairs = {"id": f"p{number}", "source": name, "conversations": turns * (1 + number % 2)}
        records.append(text if name == "notes" else pairs)
    file = root / f"{name}.jsonl"
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    build_index([file], root / "index" / name, tokenizer, workers=1, settings=SOURCES.get(name, SOURCES["native"]))
    return root / "index" / name


def _blend(root: Path, indexes: dict[str, Path]) -> Path:
    sources = [{"name": name, "path_prefix": str(prefix), "priority": 1.0} for name, prefix in indexes.items()]
    content = {"seq_length": 96, "seed": 5, "packing": {"window": 8}, "sources": sources}
    return build_blend(parse_blend_config(content, "test"), root / "blend")


def test_one_template_from_the_index_to_the_reply(tmp_path: Path, configure, finish) -> None:
    tokenizer = chatml_tokenizer(tmp_path / "tokenizer")
    blend = _blend(tmp_path, {name: _index(tmp_path, name, tokenizer) for name in SOURCES})
    # A later edit of the tokenizer's settings changes nothing: the indexes remember what they were made with.
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ 'x' }}"}))
    base = write_model(
        tmp_path / "base", dataclasses.replace(SMALL["qwen3-tied"], vocab_size=424, max_position_embeddings=2048)
    )
    model = {"hf": str(base), "init_from": str(base)}
    finish(configure(tmp_path / "run", model=model, data={"blend": str(blend)}, training={"train_iters": 2}))

    carried = resolve_checkpoint(tmp_path / "run") / "tokenizer"
    assert (carried / "chat_template.jinja").read_text() == CHATML

    parity = export_checkpoint(tmp_path / "run", tmp_path / "hf")
    assert parity is not None and parity.tokenizer_mismatches == 0 and parity.tokenizer_texts >= 6
    assert verify_export(tmp_path / "run", tmp_path / "hf") == parity
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == CHATML
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "the base model's own chat template" in card and "The sources `pairs` had the form `<问>：" in card
    manifest = json.loads((tmp_path / "hf" / "manifest.json").read_text())
    assert manifest["served"]["chat_format"] == "native"

    chat = ChatModel(tmp_path / "hf", ReplySettings(max_new_tokens=8, device="cpu"))
    question = [{"role": "user", "content": "头痛？"}]
    expected = (
        "<|im_start|>system\nYou are a doctor.<|im_end|>\n<|im_start|>user\n头痛？<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.render(question) == expected
    assert chat.encode(question) == load_tokenizer(tokenizer).encode_rendered(expected).tolist()
    names = load_tokenizer(tokenizer).control_tokens
    assert chat.eos_token_ids == [names["<|im_end|>"].number, names["<|endoftext|>"].number]
    assert isinstance(ChatSession(chat).ask("头痛？", io.StringIO()), str)

    exam = {"id": "q", "question": "Aspirin?", "option": {"A": "a", "B": "b"}, "answer": "A", "question_type": "单选题"}
    (tmp_path / "exam.jsonl").write_text(json.dumps(exam) + "\n")
    asked: list[str] = []
    render = ChatModel.render

    def noting(self: ChatModel, messages: Any) -> str:
        asked.append(render(self, messages))
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatModel, "render", noting)
        short = GenerationSettings(max_new_tokens=4, device="cpu")
        scores = run_exam(tmp_path / "hf", [tmp_path / "exam.jsonl"], tmp_path / "exam", generation=short)
    assert scores["count"] == 1
    assert asked[-1].startswith("<|im_start|>system\n") and asked[-1].endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_sources_with_two_templates_are_refused_before_training(tmp_path: Path) -> None:
    indexes = {}
    for name, template in (("first", CHATML), ("second", CHATML.replace("a doctor", "a nurse"))):
        tokenizer = chatml_tokenizer(tmp_path / f"tokenizer {name}", template)
        indexes[name] = _index(tmp_path, name, tokenizer)
    blend = _blend(tmp_path, indexes)
    with pytest.raises(
        DataError, match=r"different chat templates: those of first and second differ.* Index all native"
    ):
        PackedRows(blend)
