"""Files of records: JSON documents, tables and Parquet give every record or name what is wrong."""

from __future__ import annotations

import csv
import datetime
import decimal
import json

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.storage import record_files
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.record_files import is_json_lines, read_raw_records


def read(path, allowed=0):
    bad = BadLines(allowed)
    return [(record.number, record.content) for record in read_raw_records(path, bad)], bad


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=6), st.sampled_from([None, 1]), st.integers(1, 40), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_array_is_read_element_by_element_wherever_its_text_is_cut(
    tmp_path, monkeypatch, items, indent, size, ascii
):
    monkeypatch.setattr(record_files, "_WINDOW_CHARACTERS", size)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(items, indent=indent, ensure_ascii=ascii), "utf-8", errors="surrogatepass")
    found, bad = read(path, allowed=99)
    assert [content for _, content in found] == items and not bad.lines
    assert [number for number, _ in found] == list(range(1, len(items) + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2}', r"malformed JSON after record 2 of an array: no comma after it \(.*a\.json:3\)"),
        ('[{"a": 1} {"a": 2}]', "after record 1 of an array: no comma"),
        ('[{"a": 1}, {"a" 2}]', "after record 1 of an array: Expecting ':'"),
        ('[{"a": 1}] trailing', "after record 1 of an array: more text behind the array"),
        ("[" * 100_000, "after record 0 of an array: nested too deeply"),
        ('[{"a": 1},]', "after record 1 of an array: Expecting value"),
    ],
)
def test_a_broken_array_names_the_record(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json", allowed=9)


def test_what_is_no_json_and_no_utf8_costs_one_element(tmp_path):
    (tmp_path / "a.json").write_bytes(b'["a", "\xff", "\\ud800", "b", {"c": NaN}, -Infinity, 1e999, "d"]')
    found, bad = read(tmp_path / "a.json", allowed=5)
    assert found == [(1, "a"), (4, "b"), (8, "d")] and [line.line for line in bad.lines] == [2, 3, 5, 6, 7]
    assert bad.lines[2].reason == "malformed JSON: NaN is not JSON" and "1e999 is too large" in bad.lines[4].reason


@pytest.mark.parametrize("name", ["a.json", "a.json.zst"])
def test_json_lines_one_object_and_an_array_are_told_apart_by_their_content(name, tmp_path):
    path = tmp_path / name
    for text, expected in (
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ('\ufeff\n [{"a": 1}]', [{"a": 1}]),
        ('{\n "a": 1\n}\n', [{"a": 1}]),
        ('{"a": 1}', [{"a": 1}]),
        ('{"web": [["q", "a"]]}', [{"id": "web-0", "source": "web", "dialogue": ["q", "a"]}]),
    ):
        path.write_bytes(zstandard.compress(text.encode()) if name.endswith("zst") else text.encode())
        assert [content for _, content in read(path)[0]] == expected


def test_tables_are_read_by_their_header_with_line_breaks_in_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufefftitle,text\r\n高血压,"第一行\n第二行，含""引号"""\r\n\r\n糖尿病,测血糖\r\n'.encode())
    csv.field_size_limit(6)  # left behind by another reader of the same process
    found, bad = read(path)
    assert found == [
        (3, {"title": "高血压", "text": '第一行\n第二行，含"引号"'}),
        (5, {"title": "糖尿病", "text": "测血糖"}),
    ]
    assert bad.tolerated == {"blank line": 1}
    (tmp_path / "a.tsv").write_bytes("title\ttext\n高血压\t限盐, 多运动\n".encode("gb18030"))
    found, bad = read(tmp_path / "a.tsv")
    assert found == [(2, {"title": "高血压", "text": "限盐, 多运动"})] and bad.tolerated == {"file in GB18030": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,a\n1,2\n", r"wrong header: got \['a', 'a'\], need one name for each column"),
        (b"a,\n1,2\n", r"wrong header: got \['a', ''\]"),
        (b"a,b\n1,2,3\n", r"wrong number of columns: got 3, need 2 \(.*a\.csv:2\)"),
        (b"a,b\n1\n", "wrong number of columns: got 1, need 2"),
        (b'a,b\n1,"torn\n2,3\n', "no table: unexpected end of data in the row that ends at line"),
        (b'a,b\n1,"x"y\n', "no table: ',' expected after '\"'"),
        (b"a,b\n1,\xff\n", r"invalid UTF-8 \(.*a\.csv:2\)"),
    ],
)
def test_a_wrong_table_names_what_is_wrong(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv")


def test_values_that_json_has_no_word_for_are_told_in_its_words(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    import pyarrow.parquet as parquet

    noon = datetime.datetime(2019, 11, 20, 12, 30)
    columns = {
        "text": ["a", "b"],
        "score": [float("nan"), 0.5],
        "when": pyarrow.array([noon, None], pyarrow.timestamp("ns")),
        "far": pyarrow.array([1, 253402300800000000], pyarrow.timestamp("us")),  # the year 10000
        "day": [noon.date(), None],
        "price": [decimal.Decimal("1.50"), None],
        "raw": ["血压".encode(), b"\xff\xfe"],
        "nested": [{"tags": ["x", "y"], "at": noon}, None],
        "took": [datetime.timedelta(seconds=90), None],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    found, bad = read(path, allowed=1)
    assert found == [
        (1, {"text": "a", "score": None, "when": "2019-11-20T12:30:00", "far": "1970-01-01T00:00:00.000001",
             "day": "2019-11-20", "price": "1.50", "raw": "血压", "nested": {"tags": ["x", "y"], "at": "2019-11-20T12:30:00"},
             "took": "0:01:30"}),
    ]  # fmt: skip
    assert bad.lines[0].line == 2 and bad.lines[0].reason.startswith("value out of range")
    assert bad.tolerated == {"value left out: NaN or infinity": 1}
    json.dumps(found[0][1], allow_nan=False)
    parquet.write_table(pyarrow.table({"raw": [b"\xff\xfe"], "x": [float("-inf")]}), path)
    found, bad = read(path)
    assert found == [(1, {"raw": None, "x": None})] and sum(bad.tolerated.values()) == 2
    parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, names=["a", "a"]), path)
    with pytest.raises(DataError, match=r"two columns of one name: got \['a', 'a'\]"):
        read(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs the package pyarrow: pip install pyarrow"):
        read(tmp_path / "a.parquet")


def test_only_files_of_lines_are_cut_into_lines():
    assert is_json_lines("a.jsonl") and is_json_lines("a.jsonl.zst") and is_json_lines("a.ndjson")
    assert not any(map(is_json_lines, ("a.json", "a.json.gz", "a.csv", "a.TSV.gz", "a.parquet")))


@given(st.binary(max_size=120), st.sampled_from(["a.json", "a.csv", "a.tsv", "a.jsonl", "a.json.zst", "a.parquet"]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_give_records_or_a_named_error(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    try:
        read(path, allowed=999)
    except DataError as error:
        assert str(path) in str(error)
