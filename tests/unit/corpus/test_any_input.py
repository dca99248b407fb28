"""Whatever lies in a raw file: never a traceback, and every record is a passage, a rejection or counted."""

from __future__ import annotations

import csv
import io
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_huatuo.corpus import CurationSettings, curate
from megatron_huatuo.corpus.readers.read_files import find_reader
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines, read_jsonl
from tests.unit.corpus import test_xml

WORDS = ["高血压患者应减少食盐摄入，并遵医嘱长期服药。", "Patients should eat less salt and take their medicine. ", "<b>药</b>", "&lt;p&gt;",
         "锟斤拷", "\ufffd", "â€™", "10<sup>5</sup>", "13812345678", "\u200b", "\n", "。", "7", "ab", "<答>：", "</s>", "\x00", "１２"]  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), max_size=8).map("".join)
values = (
    texts
    | st.none()
    | st.integers()
    | st.booleans()
    | st.lists(texts, max_size=2)
    | st.dictionaries(texts, texts, max_size=2)
)
keys = st.sampled_from(["text", "id", "source", "language", "title", "metadata", "url", "content", "正文"])
records = st.dictionaries(keys, values, max_size=5) | st.fixed_dictionaries({"text": texts}) | texts | values
quiet = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@given(st.lists(records, max_size=8))
@quiet
def test_every_element_of_an_array_is_accounted_for(tmp_path, batch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(batch, ensure_ascii=False), "utf-8")
    try:
        report = curate(
            [path], tmp_path / "out", CurationSettings(source="web", max_bad_lines=99, near_duplicate_similarity=2)
        )
    except DataError as error:
        assert "nothing left" in str(error)
        return
    rejected = [line.record for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    bad = sum(row["id"] is None for row in rejected)
    assert report["documents_in"] + bad == len(batch)
    assert report["documents_in"] + report["parts_made"] + bad == report["documents_out"] + report["rejected"]
    assert len(rejected) == report["rejected"]
    kept = sum(number for name, number in report["tolerated"].items() if name.startswith("kept as metadata"))
    found = sum(
        len([key for key in line.record.get("metadata", {}) if key in ("url", "content", "正文")])
        for line in read_jsonl(tmp_path / "out" / "documents.jsonl")
    )
    assert kept >= found


@given(
    st.lists(st.lists(texts, min_size=2, max_size=2), max_size=6),
    st.sampled_from([",", "\t"]),
    st.sampled_from(["utf-8-sig", "gb18030", "utf-16"]),
)
@quiet
def test_every_row_of_a_table_is_a_document_in_whatever_encoding(tmp_path, rows, delimiter, encoding):
    rows = [[cell.replace("\x00", "").replace("\ufffd", "").replace("â€™", "") or "x" for cell in row] for row in rows]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows([["标题甲", "text"], *rows])
    path = tmp_path / ("a.csv" if delimiter == "," else "a.tsv")
    path.write_bytes(buffer.getvalue().encode(encoding))
    bad = BadLines()
    items = list(find_reader(str(path))(str(path), "web", bad))
    assert [item.document.text for item in items] == [text for _, text in rows]
    assert bad.tolerated["kept as metadata: 标题甲"] == sum(bool(title.strip()) for title, _ in rows)


@given(
    st.sampled_from([test_xml.JATS, test_xml.BITS, test_xml.MEDQUAD, test_xml.PUBMED]),
    st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(["", "<", ">", "<p>", "</p>", "&", "\x00", "血", '"', "<sup>5</sup>"])), max_size=3),
    st.none() | st.integers(0, 4000),
)  # fmt: skip
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_xml_gives_documents_or_one_named_error(tmp_path, text, changes, cut):
    for place, put in changes:
        text = text[:place] + put + text[place + 1 :]
    path = tmp_path / "a.xml"
    path.write_text(text[:cut], "utf-8")
    try:
        for item in find_reader(str(path))(str(path), None, BadLines(99)):
            assert item.document.id and item.document.source
    except DataError as error:
        assert "a.xml" in str(error)


@given(st.binary(max_size=300), st.sampled_from(["a.txt", "a.jsonl", "a.xml", "a.txt.gz", "a.jsonl.zst", "a.nxml.zst"]))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_give_documents_or_one_named_error(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    try:
        list(find_reader(str(path))(str(path), "web", BadLines(999)))
    except DataError as error:
        assert name in str(error)
