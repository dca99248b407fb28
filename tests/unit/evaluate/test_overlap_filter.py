"""The filter of documents on token ids: it keeps every document that shares a run, on every kind of tokenizer."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from megatron_huatuo.evaluate.overlap import ExamRuns, find_overlap
from megatron_huatuo.evaluate.overlap_filter import RunFilter, TokenCharacters, characters_of_text
from megatron_huatuo.exams.exam_format import ExamQuestion
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.index.tokenizer import load_tokenizer
from tests.unit.evaluate.test_overlap import near, options, planted, stem, write_tokenizer

DATA = Path(__file__).parents[4] / "shared" / "data"
TEXTS = [
    "患者，女性，５６岁。心电图示ST段抬高😀；ΟΔΟΣ, Größe ＡＢＣ naïve 𠮷 K+ 3.5mmol/L",
    "A 35-year-old man.",
    "",
    "。，！",
]


def byte_level(folder):
    """A byte-level tokenizer.json with so few pieces that most Chinese characters are bytes."""
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(TEXTS * 5, vocab_size=300, special_tokens=["<|endoftext|>"])
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return folder


def published():
    return [DATA / "baichuan2" / "tokenizer.model", DATA / "tokenizers" / "qwen3", DATA / "tokenizers" / "llama3_1"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SentencePiece", "byte-level", "Baichuan2", "Qwen3", "Llama 3.1"])
def test_tokens_one_by_one_make_the_characters_of_the_text(kind, tmp_path):
    own = {"SentencePiece": lambda: write_tokenizer(tmp_path, TEXTS * 30), "byte-level": lambda: byte_level(tmp_path)}
    path = (
        own[kind]() if kind in own else dict(zip(["Baichuan2", "Qwen3", "Llama 3.1"], published(), strict=True))[kind]
    )
    if not path.exists():
        pytest.skip(f"no tokenizer of {kind} here")
    tokenizer = load_tokenizer(path)
    documents = [np.array(tokenizer.encode(text), np.int64) for text in TEXTS]
    codes, bounds = TokenCharacters(tokenizer).stream(documents)
    for document, start, end in zip(documents, bounds, bounds[1:], strict=False):
        expected = characters_of_text(tokenizer.decode(document))[0]
        assert "".join(map(chr, codes[start:end])) == "".join(map(chr, expected))


def test_characters_are_letters_and_digits_in_lower_case_and_plain():
    codes, before = characters_of_text("Ｂ超， ΟΔΟΣ-K 3。")
    assert "".join(map(chr, codes)) == "b超οδοσk3"
    assert before.tolist() == [0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_what_is_found_is_what_reading_every_document_finds(language, tmp_path, monkeypatch):
    """Near documents share beginnings of runs with the exam; bytes, cut characters and document ends are among them."""
    generator = random.Random(language)
    questions = [ExamQuestion(f"q{k}", stem(language, generator), options(language, generator), "A") for k in range(60)]
    texts = [
        planted(k, question, language) if k % 3 == 0 else near(k, question, language, generator)
        for k, question in enumerate(questions)
    ]
    texts += [questions[0].question[:40] + "与" + questions[0].question[40:], questions[1].question[:-1]]
    path = tmp_path / "pairs.jsonl"
    with open(path, "w", encoding="utf-8") as handle:
        for k, text in enumerate(texts):
            turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}]
            handle.write(json.dumps({"id": f"pair-{k}", "conversations": turns}, ensure_ascii=False) + "\n")
    build_index([path], tmp_path / "index", byte_level(tmp_path / "tokenizer"), workers=1)
    found = find_overlap(questions, [tmp_path / "index"], workers=1)
    monkeypatch.setattr(RunFilter, "documents", lambda self, codes, bounds: list(range(len(bounds) - 1)))
    assert found == find_overlap(questions, [tmp_path / "index"], workers=1)
    assert len(found[0]) >= 20


def test_a_run_counts_only_whole_and_inside_one_document():
    question = ExamQuestion("q", "肝素过量引起出血时应选用的对抗药物是哪一个", {"A": "鱼精蛋白", "B": "纳洛酮"}, "A")
    run_filter = RunFilter(ExamRuns([question]).as_characters())
    whole = characters_of_text(question.question)[0]
    filler = characters_of_text("今天天气很好大家都出门散步去了")[0]
    streams = [filler, whole, whole[:12], whole[12:], np.concatenate([filler, whole[3:17], filler])]
    bounds = np.concatenate([[0], np.cumsum([len(stream) for stream in streams])])
    assert run_filter.documents(np.concatenate(streams), bounds) == [1, 4]
    assert run_filter.documents(np.empty(0, np.uint32), np.array([0, 0])) == []
    assert RunFilter([]).documents(whole, np.array([0, len(whole)])) == []


def test_a_tokenizer_that_cannot_be_taken_apart_is_decoded_with_one_warning(tmp_path, monkeypatch, caplog):
    path = tmp_path / "pairs.jsonl"
    question = ExamQuestion("q", "肝素过量引起出血时应选用的对抗药物是哪一个", {"A": "鱼精蛋白", "B": "纳洛酮"}, "A")
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": question.question}]
    path.write_text(json.dumps({"id": "1", "conversations": turns}, ensure_ascii=False) + "\n", encoding="utf-8")
    build_index([path], tmp_path / "index", byte_level(tmp_path / "tokenizer"), workers=1)
    monkeypatch.setattr(type(load_tokenizer(tmp_path / "tokenizer")), "token_bytes", lambda self: [b"x"] * 300)
    found, _ = find_overlap([question], [tmp_path / "index"], workers=1)
    assert list(found) == [0] and "do not make the text of document 0" in caplog.text
