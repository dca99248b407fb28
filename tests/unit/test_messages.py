"""What the package says when it refuses: every message stands in a test, and those that no room's own tests meet stand here."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from megatron_huatuo.blend.blend_write import SourceCounts
from megatron_huatuo.checkpoint.hf_weight_files import WeightFiles
from megatron_huatuo.cluster.check import check_cluster
from megatron_huatuo.cluster.cluster_settings import ClusterSettings
from megatron_huatuo.errors import HuatuoError
from megatron_huatuo.evaluate.answering.replies import output_directory
from megatron_huatuo.evaluate.judging.answers import read_turns
from megatron_huatuo.evaluate.judging.rate import read_rubric
from megatron_huatuo.exams.questions import read_questions
from megatron_huatuo.index.formats.chat_template import need_chat_template
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.inspect.describe import describe
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family, get_preset
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.run_files import CONFIG, blend_of_run
from megatron_huatuo.unify.input_pairs import read_pairs
from megatron_huatuo.unify.writers.writer_prompts import PROMPTS_FOLDER, load_prompts
from megatron_huatuo.unify.writers.writer_replay import load_replay
from megatron_huatuo.unify.writers.writer_styles import load_styles

ROOT = Path(__file__).parents[2]
OURS = ("HuatuoError", "ConfigError", "DataError", "IntegrityError", "EndpointError")


def _changed(source: Path, target: Path, **changes: Any) -> str:
    target.write_text(yaml.safe_dump({**yaml.safe_load(source.read_text("utf-8")), **changes}), "utf-8")
    return str(target)


def _files(folder: Path) -> dict[str, Path]:
    texts = {
        "file": "text",
        "empty.csv": "",
        "wide.csv": f'question,"{"x" * 140_000}"\n',
        "none.jsonl": "",
        "blank.jsonl": '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\\u200b"}]}\n',
        "rubric.yaml": "language: en\nlowest: 1\nhighest: 10\ninstruction: i\ncriteria: []\nextra: 1\n",
        CONFIG: "data: {}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return {name: folder / name for name in texts}


def _whole_numbers(folder: Path) -> Path:
    save_file({"a": torch.zeros(1, dtype=torch.int64)}, folder / "model.safetensors")
    return folder


def _toy(**changes: Any) -> Architecture:
    return replace(get_preset("toy"), **changes)


def _hold(path: Path) -> None:
    with output_directory(path):
        pass


def _read_narrow_cells(path: str) -> object:
    with mock.patch("megatron_huatuo.storage.record_files.MAX_LINE_BYTES", 100_000):
        return read_questions([path])


CASES: dict[str, tuple[str, Callable[[Path, dict[str, Path]], Any]]] = {
    "a file as output": (r"no directory: .* is a file", lambda folder, files: _hold(files["file"])),
    "empty CSV": ("no questions: .* is empty", lambda folder, files: read_questions([files["empty.csv"]])),
    "no CSV": ("not CSV: field larger", lambda folder, files: _read_narrow_cells(files["wide.csv"])),
    "no questions": (r"no questions: .*none\.jsonl", lambda folder, files: read_questions([files["none.jsonl"]])),
    "no turns": ("no turns: need a question and an answer", lambda *_: read_turns([], "a:1")),
    "rubric": ("unknown key 'extra' in the rubric: need", lambda folder, files: read_rubric(str(files["rubric.yaml"]))),
    "no template": ("tokenizer has no chat template", lambda folder, _: need_chat_template(folder / "tokenizer.json")),
    "no tokenizer": ("no tokenizer: .* does not exist", lambda folder, _: load_tokenizer(folder / "x.model")),
    "nothing to see": ("nothing to inspect: .* does not exist", lambda folder, _: describe(folder / "nowhere", None)),
    "no address": (r"wrong --base-url: got 'ftp://a/v1', need http", lambda *_: EndpointSettings("ftp://a/v1", "m")),
    "no port": ("wrong --base-url: Port could not be cast", lambda *_: EndpointSettings("http://a:b/v1", "m")),
    "no host": ("wrong --base-url: Invalid IPv6 URL: need", lambda *_: EndpointSettings("http://[::1/v1", "m")),
    "activation": ("wrong activation: got 'relu'", lambda *_: _toy(activation="relu")),
    "fields": ("wrong fields of an architecture: unknown", lambda *_: Architecture.from_dict({"colour": 1})),
    "window with ALiBi": (
        "wrong sliding_window: got 8 with ALiBi",
        lambda *_: _toy(sliding_window=8, alibi=True, rope_theta=None),
    ),
    "layers": ("wrong layers: got global_every = 2", lambda *_: _toy(global_every=2)),
    "Baichuan 1": (
        "unsupported 'vocab_size': got 64000, which is Baichuan 1",
        lambda *_: get_family("baichuan2").architecture_fields({"vocab_size": 64000}, "config.json"),
    ),
    "layout": ("unknown layout: need 'conversations'", lambda *_: parse_conversations({"a": 1}, "a:1")),
    "two systems": (
        "two system texts: got 'system' and a first turn",
        lambda *_: parse_conversations(
            {"system": "a", "messages": [{"role": r, "content": r} for r in ("system", "user", "assistant")]}, "a:1"
        ),
    ),
    "no speaker": (
        "utterance without speaker: need",
        lambda *_: parse_conversations({"utterances": ["hello", "good day"]}, "a:1"),
    ),
    "blank turn": (
        "blank turn: need text",
        lambda folder, files: list(read_pairs(str(files["blank.jsonl"]), BadLines(max_bad_lines=0))),
    ),
    "type of weights": (
        "unsupported type of tensor 'a': got I64",
        lambda folder, _: WeightFiles(_whole_numbers(folder), get_family("llama")).check({"a": (1,)}),
    ),
    "no blend": ("configuration names no blend: need data.blend", lambda folder, _: blend_of_run(folder)),
    "no prompts": ("cannot read prompts: ", lambda folder, _: load_prompts([str(folder / "none.yaml")])),
    "prompt": (
        "prompt 'question' lacks .*: the model would not see it",
        lambda folder, _: load_prompts([_changed(PROMPTS_FOLDER / "en.yaml", folder / "p.yaml", question="Ask.")]),
    ),
    "replay prompt": (
        "prompt '.*' lacks .*: the model would not see it",
        lambda folder, _: load_replay(
            [_changed(PROMPTS_FOLDER / "replay.en.yaml", folder / "r.yaml", question="Ask.")]
        ),
    ),
    "style prompt": (
        "prompt 'question' lacks .*: the model would not see it",
        lambda folder, _: load_styles(
            load_prompts(),
            [_changed(PROMPTS_FOLDER / "styles" / "case.en.yaml", folder / "s.yaml", question="Ask.")],
        ),
    ),
    "no GPU": (
        "no GPU for local rank 0: torch sees 0",
        lambda folder, _: check_cluster(ClusterSettings(directory=str(folder), device="cuda")),
    ),
    "long row": (
        "row 1 exceeds seq_length 8",
        lambda *_: SourceCounts.of_rows(
            [_Lengths()], np.zeros(3, np.uint8), np.arange(3, dtype=np.uint32), np.array([0, 1, 3]), 8
        ),
    ),
}  # fmt: skip


class _Lengths:
    num_documents, full_lengths = 3, np.array([8, 4, 5])


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    message, act = CASES[case]
    with pytest.raises(HuatuoError, match=message):
        act(tmp_path, _files(tmp_path))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _messages() -> Iterator[tuple[str, list[str]]]:
    """(place, words of each literal part) of every message that the package raises."""
    for path in sorted((ROOT / "megatron_huatuo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            if not isinstance(node.exc.func, ast.Name) or node.exc.func.id not in OURS:
                continue
            message = node.exc.args[0]
            pieces = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [str(piece.value) for piece in pieces if isinstance(piece, ast.Constant)]
            yield f"{path.relative_to(ROOT)}:{node.lineno}", texts


@pytest.mark.slow
def test_every_message_of_the_package_stands_in_a_test() -> None:
    """Three words of a message in a row, or two where it has no more, must be found in the tests' own text."""
    tests = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")]
    known = " ".join(_words(re.sub(r'"\s*\n\s*[rf]*"', "", " ".join(tests).replace("\\", ""))))
    missing = []
    for place, texts in _messages():
        runs = [
            " ".join(w[i : i + 3])
            for text in texts
            for w in [_words(text)]
            for i in range(max(1, len(w) - 2))
            if len(w) > 1
        ]
        if runs and not any(run in known for run in runs):
            missing.append(f"{place}: {' … '.join(texts)}")
    assert not missing, "\n".join(missing)
