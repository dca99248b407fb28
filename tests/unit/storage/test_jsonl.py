"""JSON Lines: every fault is named by file and line, none passes silently."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage import jsonl
from megatron_huatuo.storage.jsonl import BadLines, dump_line, read_jsonl, write_jsonl
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import parse_document, parse_questions
from megatron_huatuo.storage.text_files import open_binary

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path, records):
    path = tmp_path / "r.jsonl"
    assert write_jsonl(path, records) == len(records)
    assert [line.record for line in read_jsonl(path)] == records


BAD = {
    b'{"a": 1': "malformed JSON",
    b'{"a": tru}': "malformed JSON",
    b"{'a': 1}": "malformed JSON",
    b'{"a": NaN}': "malformed JSON: NaN is not JSON",
    b'{"a": -Infinity}': "malformed JSON: -Infinity is not JSON",
    b'{"a": 1e999}': "malformed JSON: 1e999 is too large",
    b'{"a": ' + b"9" * 5000 + b"}": "malformed JSON",
    b'{"a": "\xff"}': "invalid UTF-8: byte 7",
    b'{"a": "\xed\xa0\x80"}': "invalid UTF-8",
    b'{"a": "\\ud800"}': "lone surrogate",
    b'{"a": "\x00"}': "malformed JSON: Invalid control character",
    b"null": "no JSON object: got NoneType",
    b'"text"': "no JSON object: got str",
    b"[1]": "no JSON object: got list",
    b"[" * 100_000: "malformed JSON: nested too deeply",
}


@pytest.mark.parametrize("raw", BAD, ids=[f"{raw[:14]!r}" for raw in BAD])
def test_a_bad_line_is_named_and_stops_the_reader(raw, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"ok": 1}\n' + raw + b'\n{"ok": 2}\n')
    with pytest.raises(DataError, match=r"\(.*bad\.jsonl:2\); 1 bad so far, allowed 0.*--max-bad-lines") as caught:
        list(read_jsonl(path))
    assert BAD[raw] in str(caught.value)
    bad = BadLines(1)
    assert [line.record["ok"] for line in read_jsonl(path, bad)] == [1, 2]
    assert [(line.line, line.reason.startswith(BAD[raw])) for line in bad.lines] == [(2, True)]


def test_all_bad_lines_of_one_file_are_counted_by_reason_and_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = '{"id": "1", "source": "web", "language": "zh", "text": "字"}'.encode()
    lines = [
        b"\xef\xbb\xbf" + good, good + b"\r", b"", b"   ", good[:-1], good.replace(b'"web"', b"NaN"),
        good.replace(b'"web"', b"null"), good.replace(b'"web"', b"7"), good.replace(b'"text"', b'"txt"'),
        good.replace(b'"zh"', b'"fr"'), good.replace("字".encode(), b"\xff"), good.replace("字".encode(), b"\\udfff"),
        good.replace("字".encode(), b"\\u0000"), b"[]", good, good[:-9],
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    bad = BadLines(100)
    documents = list(read_records(path, lambda raw, where: [parse_document(raw, where)], bad))
    assert len(documents) == 4
    assert dict(bad.tolerated) == {"byte-order mark": 1, "CRLF": 1, "blank line": 2}
    assert [line.line for line in bad.lines] == [5, 6, 7, 8, 9, 10, 11, 12, 14, 16]
    assert bad.count_by_reason() == {
        "malformed JSON": 3, "wrong value of 'source'": 2, "wrong value of 'text'": 1, "wrong value of 'language'": 1,
        "invalid UTF-8": 1, "lone surrogate": 1, "no JSON object": 1,
    }  # fmt: skip
    assert "truncated?" in bad.lines[-1].reason
    assert len(documents) + len(bad.lines) + bad.tolerated["blank line"] == len(lines)


def test_a_line_of_100_mb_is_skipped_in_bounded_time(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 100_000_000 + b'"}\n{"a": "y"}\n')
    bad = BadLines(1)
    (line,) = read_jsonl(path, bad)
    assert line.record == {"a": "y"} and line.number == 2 and line.offset == 100_000_010
    assert bad.lines[0].reason.startswith("line is too long: over 67108864 bytes")


@pytest.mark.parametrize(("extra", "kept"), [(0, True), (1, False)])
def test_the_limit_of_a_line_counts_its_line_end(extra, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 20)
    path = tmp_path / "edge.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * (10 + extra) + b'"}\n' + b'{"b": 1}\n')
    bad = BadLines(1)
    assert [line.number for line in read_jsonl(path, bad)] == ([1, 2] if kept else [2])


def test_offsets_lead_back_to_the_lines(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "血压"}\r\n\n{"a": "血糖"}\n'.encode())
    for line in read_jsonl(path):
        with open(path, "rb") as handle:
            handle.seek(line.offset)
            assert json.loads(handle.readline().decode("utf-8-sig")) == line.record


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert list(read_jsonl(tmp_path / "empty.jsonl")) == []
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        list(read_jsonl(tmp_path))


def test_compressed_files_are_read_and_torn_ones_named(tmp_path):
    records = [{"n": number, "text": f"{number * 7919}"} for number in range(2000)]
    path = tmp_path / "r.jsonl.gz"
    whole = gzip.compress(b"".join(map(dump_line, records)))
    path.write_bytes(whole)
    assert [line.record for line in read_jsonl(path)] == records
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"file is incomplete after line \d+.*r\.jsonl\.gz"):
        list(read_jsonl(path))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"file is incomplete|malformed JSON"):
        list(read_jsonl(path))
    path.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="file is incomplete after line 0"):
        list(read_jsonl(path))


def test_every_bit_flip_in_a_compressed_file_is_found_or_harmless(tmp_path):
    records = [{"n": number} for number in range(50)]
    path = tmp_path / "r.jsonl.gz"
    whole = gzip.compress(b"".join(map(dump_line, records)), mtime=0)
    for position in range(10, len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            assert [line.record for line in read_jsonl(path, BadLines(999))] == records, position
        except DataError:
            continue


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_never_written(value, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(tmp_path / "r.jsonl", [{"a": 1}, {"a": value}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([["q1", "a1"], ["q2", "a2", "q3", "a3"]], [(None, 2), (None, 4)]),
        ({"Meidcal_books": [["q1", "a1"], ["q2", "a2"]], "web": [["q3", "a3"]]},
         [("Meidcal_books", 2), ("Meidcal_books", 2), ("web", 2)]),
        ([{"instruction": "q", "input": "", "output": "a"}], [(None, 2)]),
        ({"id": "x", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [(None, 2)]),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, [(None, 2)]),
        ({"dialogue": ["q", "a"]}, [(None, 2)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
def test_whole_json_files_hold_the_same_records(content, expected, indent, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content, indent=indent), "utf-8")
    found = list(read_records(path, parse_conversations))
    assert [(conversation.source, len(conversation.turns)) for conversation in found] == expected
    assert len({conversation.id for conversation in found}) == len(found)


def test_one_bad_record_of_a_whole_file_costs_only_itself(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"a": [["q", "x"], ["q"], ["q", " "], ["q", "y"]], "b": [["q", 5], ["q", "z"]]}))
    bad = BadLines(3)
    found = list(read_records(path, parse_conversations, bad))
    assert [(conversation.id, conversation.turns[1].value) for conversation in found] == [
        ("a-0", "x"), ("a-3", "y"), ("b-1", "z"),
    ]  # fmt: skip
    assert [line.line for line in bad.lines] == [2, 5]
    assert bad.tolerated == {"blank text": 1}


def test_exams_in_one_object_keep_their_names(tmp_path):
    path = tmp_path / "exam.json"
    question = {"question": "q", "option": {"A": "x", "B": "y"}, "answer": "A"}
    path.write_text(json.dumps({"Pharmacist": [question, {**question, "id": "own"}], "TCM": [question]}))
    found = list(read_records(path, parse_questions))
    assert [(q.id, q.source) for q in found] == [
        ("Pharmacist-0", "Pharmacist"),
        ("own", "Pharmacist"),
        ("TCM-0", "TCM"),
    ]


def test_json_lines_under_the_name_json_are_read_line_by_line(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"dialogue": ["q", "a"]}\n{"dialogue": ["q", "b"]}\n{"dialogue"')
    bad = BadLines(1)
    assert len(list(read_records(path, parse_conversations, bad))) == 2 and bad.lines[0].line == 3


def test_a_lone_surrogate_in_a_whole_file_is_found(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('[{"dialogue": ["q", "\\ud800"]}]')
    with pytest.raises(DataError, match=r"lone surrogate.*r\.json:1\)"):
        list(read_records(path, parse_conversations))
    path.write_text('{"dialogue": ["q", "\\ud800"]}')
    with pytest.raises(DataError, match="lone surrogate"):
        list(read_records(path, parse_conversations))


def test_open_binary_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*x\.gz"):
        open_binary(tmp_path / "x.gz")


@pytest.mark.parametrize("name", ["records.jsonl", "records.json"])
def test_the_place_of_a_bad_record_is_named_once(name, tmp_path):
    path = tmp_path / name
    path.write_text('{"id": 1, "text": "t"}' if name.endswith("l") else '[{"id": 1, "text": "t"}]', "utf-8")
    with pytest.raises(DataError) as failed:
        list(read_records(path, lambda raw, where: [parse_document(raw, where)]))
    assert str(failed.value).count(f"{path}:1") == 1
    bad = BadLines(1)
    assert list(read_records(path, lambda raw, where: [parse_document(raw, where)], bad)) == []
    assert str(path) not in bad.lines[0].reason
