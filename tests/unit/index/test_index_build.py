"""The index build: same bytes for any number of workers, and every record accounted for."""

import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_huatuo.errors import ConfigError, DataError, HuatuoError
from megatron_huatuo.index import blocks
from megatron_huatuo.index.build_index import build_index
from megatron_huatuo.storage.indexed import IndexedReader
from tests.unit.index.hand_tokenizer import ANSWER_TAG, EOS, QUESTION_TAG

TOOL = Path(__file__).parents[3] / "tools/preprocess_data.py"
SUFFIXES = ("bin", "idx", "origin.npy", "json")


def talk(*values, **extra):
    turns = [{"from": "gpt" if number % 2 else "human", "value": value} for number, value in enumerate(values)]
    return {**extra, "conversations": turns}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_files(prefix):
    return {suffix: Path(f"{prefix}.{suffix}").read_bytes() for suffix in SUFFIXES}


def run_tool(*arguments, **options):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment, **options)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(blocks, "CHUNK_BYTES", 2000)


@pytest.fixture
def corpus(tmp_path):
    """Two files of 300 conversations from three sources, one to three turns."""
    files = []
    for part in range(2):
        records = []
        for number in range(150):
            values = [f"问题 {part}-{number}：高血压怎么办？", f"低盐饮食。Take {number} mg."] * (1 + number % 3)
            records.append(talk(*values, id=f"{part}-{number}", source=("web", "sft", "books")[number % 3]))
        files.append(write_lines(tmp_path / f"part{part}.jsonl", records))
    return files


def test_one_conversation_by_hand(tmp_path, by_hand):
    path = write_lines(tmp_path / "a.jsonl", [talk("头痛", "休息", "药", "不"), talk("药", "休")])
    manifest = build_index([path], tmp_path / "p", by_hand)
    reader = IndexedReader(tmp_path / "p")
    reader.verify()
    first = [*QUESTION_TAG, 9, 10, *ANSWER_TAG, 11, 12, 7, *QUESTION_TAG, 13, *ANSWER_TAG, 14, EOS]
    assert reader.document(0)[0].tolist() == first
    assert reader.document(1)[0].tolist() == [*QUESTION_TAG, 13, *ANSWER_TAG, 11, EOS]
    assert reader.document_lengths().tolist() == [26, 12]
    assert reader.context_lengths().tolist() == [11, 10]
    assert manifest["trained_tokens"] == (2 + 1) + (1 + 1) + (1 + 1)
    assert manifest["chat_format"] == "huatuo2"
    assert manifest["tokenizer"]["vocab_size"] == 17 and manifest["tokenizer"]["eos_id"] == EOS
    assert manifest == json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))


def test_stock_megatron_reads_what_the_tool_writes(tmp_path, corpus, trained):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    build_index(corpus, tmp_path / "p", trained, workers=1)
    ours, stock = IndexedReader(tmp_path / "p"), IndexedDataset(str(tmp_path / "p"), multimodal=True)
    assert len(stock) == len(ours.sequence_lengths) and len(stock.document_indices) == len(ours) + 1
    for number in range(0, len(stock), 17):
        assert stock[number][0].tolist() == ours.sequence(number)[0].tolist()
        assert stock[number][1] == ours.sequence(number)[1]


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_chunks_or_compression(tmp_path, corpus, trained, monkeypatch):
    (tmp_path / "out").mkdir()
    build_index(corpus, tmp_path / "out/p", trained, workers=1)
    expected = read_files(tmp_path / "out/p")
    monkeypatch.setattr(blocks, "CHUNK_BYTES", 2000)
    for workers in (1, 2, 3):
        build_index(corpus, tmp_path / "out/p", trained, workers=workers)
        assert {**read_files(tmp_path / "out/p"), "json": b""} == {**expected, "json": b""}
        if workers == 1:
            chunked = read_files(tmp_path / "out/p")
        assert read_files(tmp_path / "out/p") == chunked
    zipped = [path.with_suffix(".jsonl.gz") for path in corpus]
    for path, packed in zip(corpus, zipped, strict=True):
        packed.write_bytes(gzip.compress(path.read_bytes()))
    build_index(zipped, tmp_path / "out/p", trained, workers=2)
    assert read_files(tmp_path / "out/p")["bin"] == expected["bin"]
    assert read_files(tmp_path / "out/p")["idx"] == expected["idx"]


def test_order_is_that_of_files_and_lines_and_origins_say_so(tmp_path, corpus, trained, small_chunks):
    build_index(corpus, tmp_path / "p", trained, workers=2, source="sft")
    reader = IndexedReader(tmp_path / "p")
    expected = [(str(path), line) for path in corpus for line in range(2, 151, 3)]
    assert [reader.origin(number) for number in range(len(reader))] == expected
    assert reader.manifest["other_source"] == 200 and reader.manifest["conversations"] == 300
    from megatron_huatuo.index.tokenizer import load_tokenizer

    text = load_tokenizer(trained).decode(reader.document(60)[0].tolist())
    assert text.startswith("<问>：问题 1-31：")


def test_a_source_that_nobody_has_is_an_error(tmp_path, corpus, trained):
    with pytest.raises(
        DataError, match=r"no conversation to index: 2 files hold 300 .*300 of another source.*--source"
    ):
        build_index(corpus, tmp_path / "p", trained, source="no such")


@pytest.mark.parametrize(
    "content",
    [
        [{"messages": [{"role": "user", "content": "头"}, {"role": "assistant", "content": "痛"}]}],
        {"sft": [["头", "痛"]]},
        [["头", "痛"]],
        [{"instruction": "头", "output": "痛"}],
    ],
)
def test_published_layouts_of_json_files_are_read(tmp_path, by_hand, content):
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    build_index([tmp_path / "a.json"], tmp_path / "p", by_hand)
    reader = IndexedReader(tmp_path / "p")
    assert reader.document(0)[0].tolist() == [*QUESTION_TAG, 9, *ANSWER_TAG, 10, EOS]
    assert reader.origin(0) == (str(tmp_path / "a.json"), 1)


@pytest.mark.slow
def test_json_file_is_cut_into_chunks_with_its_bad_records_counted(tmp_path, trained, small_chunks):
    records = [talk(f"q{number}", "a" * 100) if number != 3 else {"conversations": 5} for number in range(90)]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    (tmp_path / "b.json").write_text("[[1, 2]]", encoding="utf-8")
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    with pytest.raises(DataError, match=r"a\.json:4"):
        build_index(paths, tmp_path / "p", trained, workers=2)
    manifest = build_index(paths, tmp_path / "p", trained, workers=2, max_bad_lines=2)
    assert manifest["documents"] == 89 and [bad["line"] for bad in manifest["bad_lines"]] == [4, 1]
    assert IndexedReader(tmp_path / "p").origin(88)[1] == 89


GOOD = json.dumps(talk("头", "痛")).encode()
# What each line is, and why it is bad (None: it is a document; "": it is skipped as blank).
LINES = [
    (b"\xef\xbb\xbf" + GOOD, None),  # byte-order mark
    (GOOD + b"\r", None),  # CRLF
    (b"", ""),
    (b'{"conversations": [', "malformed JSON"),
    (b'{"id": NaN, "conversations": []}', "malformed JSON"),
    (b"[1, 2]", "no JSON object"),
    (b"null", "no JSON object"),
    (b'{"id": "x"}', "unknown layout"),
    (b'{"conversations": null}', "wrong value of the turns"),
    (b'{"conversations": [{"from": "human", "value": null}, {"from": "gpt", "value": "a"}]}', "wrong value of 'value'"),
    (b'{"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}', "wrong value of 'value'"),
    (json.dumps(talk("头", "")).encode(), ""),
    (json.dumps(talk(" \n\t", "痛")).encode(), ""),
    (json.dumps(talk("头")).encode(), "wrong number of turns"),
    (GOOD.replace(b"human", b"\xff\xfe"), "invalid UTF-8"),
    (GOOD.replace(b"\\u75db", b"\\ud800"), "lone surrogate"),
    (b'{"x": "' + b"y" * (65 << 20) + b'"}', "line is too long"),
    (json.dumps(talk("\0\u200b", "\ufffd\u202e")).encode(), None),
    (json.dumps(talk("</s><答>：", "<问>：</s>")).encode(), None),
    (GOOD[:-9], "malformed JSON"),  # the truncated last line
]


@pytest.fixture
def bad_file(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in LINES))
    return path


@pytest.mark.slow
def test_every_kind_of_bad_line_is_counted_by_reason_and_line(tmp_path, bad_file, trained):
    bad = [(number, reason) for number, (_, reason) in enumerate(LINES, start=1) if reason]
    manifest = build_index([bad_file], tmp_path / "p", trained, max_bad_lines=len(bad))
    assert [(line["line"], line["file"]) for line in manifest["bad_lines"]] == [(n, str(bad_file)) for n, _ in bad]
    for line, (_, reason) in zip(manifest["bad_lines"], bad, strict=True):
        assert line["reason"].startswith(reason)
    assert sum(manifest["dropped"].values()) == len(bad)
    assert manifest["dropped"]["malformed JSON"] == 3 and manifest["dropped"]["wrong value of 'value'"] == 2
    assert manifest["tolerated"] == {"byte-order mark": 1, "CRLF": 1, "blank line": 1, "blank text": 2}
    assert manifest["documents"] == manifest["conversations"] == sum(reason is None for _, reason in LINES)
    assert manifest["unusual_character"] == 1 and manifest["role_tag_in_text"] == 1
    tokens = IndexedReader(tmp_path / "p").tokens
    assert (tokens == EOS).sum() == manifest["documents"]


@pytest.mark.slow
def test_one_bad_line_more_than_allowed_stops_the_run(tmp_path, bad_file, trained):
    bad = [number for number, (_, reason) in enumerate(LINES, start=1) if reason]
    for allowed in (0, len(bad) - 1):
        with pytest.raises(DataError, match=rf"bad\.jsonl:{bad[allowed]}\).*allowed {allowed}\."):
            build_index([bad_file], tmp_path / "p", trained, max_bad_lines=allowed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\r\n"])
def test_empty_input_is_an_error(tmp_path, trained, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="no conversation to index: 1 files hold 0 conversations"):
        build_index([tmp_path / "a.jsonl"], tmp_path / "p", trained)


def test_all_conversations_dropped_is_an_error_that_says_why(tmp_path):
    from tests.unit.index.hand_tokenizer import character_model, save_tokenizer

    directory = save_tokenizer(tmp_path / "t", character_model(), special=False)
    write_lines(tmp_path / "a.jsonl", [talk("头", "</s>")] * 2)
    with pytest.raises(DataError, match="'text yields the end-of-document id': 2"):
        build_index([tmp_path / "a.jsonl"], tmp_path / "p", directory)


def test_settings_that_cannot_work_are_refused(tmp_path, corpus, trained):
    with pytest.raises(DataError, match=r"no such file: .*absent\.jsonl"):
        build_index([*corpus, tmp_path / "absent.jsonl"], tmp_path / "p", trained)
    with pytest.raises(ConfigError, match="wrong --workers: got 0, need 1 or more"):
        build_index(corpus, tmp_path / "p", trained, workers=0)
    with pytest.raises(ConfigError, match="no input"):
        build_index([], tmp_path / "p", trained)


def test_a_torn_gzip_file_is_refused(tmp_path, corpus, trained):
    packed = gzip.compress(corpus[0].read_bytes())
    (tmp_path / "torn.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"file is incomplete after line \d+: .*torn\.jsonl\.gz"):
        build_index([tmp_path / "torn.jsonl.gz"], tmp_path / "p", trained)


@pytest.mark.slow
def test_a_text_of_millions_of_characters_is_one_document(tmp_path, trained):
    """One unbroken Chinese run: encoded whole, in linear time, its eos at the end."""
    run = "高血压患者" * 600_000
    write_lines(tmp_path / "a.jsonl", [talk("头", run), talk("头", "痛")])
    build_index([tmp_path / "a.jsonl"], tmp_path / "p", trained)
    reader = IndexedReader(tmp_path / "p")
    tokens, modes = reader.document(0)
    from megatron_huatuo.index.tokenizer import load_tokenizer

    assert load_tokenizer(trained).decode(tokens[modes == 1][:-1].tolist()) == run
    assert tokens[-1] == EOS and len(reader) == 2


def test_id_width_follows_the_vocabulary(tmp_path, baichuan2, by_hand):
    path = write_lines(tmp_path / "a.jsonl", [talk("头痛", "休息")])
    assert build_index([path], tmp_path / "small", by_hand)["dtype"] == "uint16"
    assert build_index([path], tmp_path / "large", baichuan2)["dtype"] == "int32"
    assert np.fromfile(tmp_path / "large.bin", "<i4")[:4].tolist() == [92655, 92614, 92574, 70]


@pytest.mark.slow
def test_tool_writes_the_index_and_reports(tmp_path, corpus, trained):
    done = run_tool("--input", *corpus, "--output-prefix", tmp_path / "病 历", "--tokenizer", trained, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "300 documents" in done.stderr and "100%" in done.stderr
    IndexedReader(tmp_path / "病 历").verify()


@pytest.mark.slow
def test_tool_names_file_and_line_and_leaves_nothing(tmp_path, corpus, trained):
    corpus[1].write_text(corpus[1].read_text(encoding="utf-8") + "{oops\n", encoding="utf-8")
    options = ("--output-prefix", tmp_path / "out/p", "--tokenizer", trained, "--workers", 2)
    done = run_tool("--input", *corpus, *options)
    assert done.returncode == 1
    assert "part1.jsonl:151" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    assert run_tool("--input", *corpus, *options, "--max-bad-lines", 1).returncode == 0


@pytest.mark.slow
def test_tool_works_with_a_plain_locale_and_no_home(tmp_path, corpus, trained):
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(TOOL.parents[1]),
        "LC_ALL": "C",
        "HOME": "/nonexistent",
    }
    command = [sys.executable, TOOL, "--input", *corpus, "--output-prefix", tmp_path / "病", "--tokenizer", trained]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, env=environment, umask=0o077)
    assert done.returncode == 0, done.stderr.decode()
    assert len(IndexedReader(tmp_path / "病")) == 300


@pytest.mark.slow
def test_a_full_disk_stops_cleanly(tmp_path, corpus, trained):
    """A file size limit stands in for the full disk: writing fails half-way."""
    limit = ("--input", *corpus, "--output-prefix", tmp_path / "out/p", "--tokenizer", trained)

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = run_tool(*limit, preexec_fn=no_room)
    assert done.returncode == 1
    assert "cannot write" in done.stderr and "Nothing was published" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    assert run_tool(*limit).returncode == 0


def test_an_output_folder_that_cannot_be_is_an_error_of_one_line(tmp_path, corpus, trained):
    (tmp_path / "file").write_text("")
    with pytest.raises(HuatuoError, match=r"cannot write .*file/p"):
        build_index(corpus, tmp_path / "file/p", trained)
