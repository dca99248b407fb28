"""Blocks of lines and the quick parser: the same lines and conversations as the careful readers give."""

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.index import blocks, chunks
from megatron_huatuo.index.blocks import lines_of, split_blocks
from megatron_huatuo.index.formats.chat_format import HuatuoFormat
from megatron_huatuo.index.tokenizer import load_tokenizer
from megatron_huatuo.storage import jsonl
from megatron_huatuo.storage.jsonl import BadLines, RawLine, split_lines

pieces = st.sampled_from([b"", b"\n", b"\r\n", b"a", b"bc\n", b"0123456789", b"0123456789abcdef\n", b"\xff\n\n"])


@settings(max_examples=300, deadline=None)
@given(content=st.lists(pieces, max_size=30), chunk_bytes=st.integers(1, 12), max_line_bytes=st.integers(12, 25))
def test_blocks_hold_the_lines_of_the_line_reader(content, chunk_bytes, max_line_bytes):
    """Long lines, missing last line ends and empty files included; a chunk is never larger than the longest line."""
    with (
        TemporaryDirectory() as directory,
        mock.patch.object(jsonl, "MAX_LINE_BYTES", max_line_bytes),
        mock.patch.object(blocks, "MAX_LINE_BYTES", max_line_bytes),
        mock.patch.object(blocks, "CHUNK_BYTES", chunk_bytes),
    ):
        path = Path(directory) / "a.jsonl"
        path.write_bytes(b"".join(content))
        assert [line for block in split_blocks(str(path)) for line in lines_of(block)] == list(split_lines(path))


values = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.none() | st.integers()
turns = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "user", "x"]), "value": values})
records = st.fixed_dictionaries(
    {"conversations": st.lists(turns, max_size=4)},
    optional={"id": values | st.just(10**30), "source": values, "provenance": st.just({"a": 1}) | values},
)


@pytest.fixture(scope="module")
def form(trained):
    return HuatuoFormat(load_tokenizer(trained))


@settings(max_examples=300, deadline=None)
@given(record=records, ascii=st.booleans(), end=st.sampled_from([b"\n", b"", b"\r\n", b" \n"]), cut=st.integers(0, 30))
def test_the_quick_parser_gives_what_the_careful_one_gives_or_nothing(form, record, ascii, end, cut):
    raw = json.dumps(record, ensure_ascii=ascii).encode()
    raw = (raw if cut > 10 else raw[: len(raw) - cut]) + end
    bad = BadLines(max_bad_lines=sys.maxsize)
    careful = chunks._parse_with_care(RawLine(3, 0, raw), form, "f", bad)
    notes: Counter[str] = Counter()
    quick = chunks._parse_faultless(raw, form, "f:3", notes)
    if quick is not None:
        assert quick == careful and not bad.lines and notes == bad.tolerated


@pytest.mark.parametrize(
    "raw", [b'{"a": NaN}', b'{"a": "\\ud800"}', b'\xef\xbb\xbf{"a": 1}', b"[]", b"\n", b"null", b'{"a": 1e999}', None]
)
def test_the_quick_parser_leaves_every_remarkable_line_to_the_careful_one(form, raw):
    assert chunks._parse_faultless(raw, form, "f:2", Counter()) is None


def test_every_unusual_character_is_found_and_no_other():
    unusual = {0, 0xFFFD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)}
    others = "".join(chr(code) for code in range(0x30000) if code not in unusual and not 0xD800 <= code < 0xE000)
    assert not chunks._has_unusual_character(others) and not chunks._has_unusual_character("")
    assert all(chunks._has_unusual_character(f"血{chr(code)}压") for code in unusual)
