"""Text files in every compression and encoding that people have: read as UTF-8, torn ones named."""

from __future__ import annotations

import gzip
import random

import pytest
import zstandard

from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.record_files import read_raw_records
from megatron_huatuo.storage.text_files import READ_ERRORS, base_suffix, converted_from, open_binary

TEXT = "高血压患者应当限盐。第一行\nabc, 12\n糖尿病与联通：每日测血糖。\n" * 300


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.txt", TEXT.encode(), None),
        ("a.txt.gz", gzip.compress(TEXT.encode()), None),
        ("a.txt.zst", zstandard.compress(TEXT.encode()), None),
        ("frames.txt.zst", zstandard.compress(TEXT[:999].encode()) + zstandard.compress(TEXT[999:].encode()), None),
        ("a.txt", TEXT.encode("gb18030"), "GB18030"),
        ("a.txt.gz", gzip.compress(TEXT.encode("gb18030")), "GB18030"),
        ("a.txt.ZST", zstandard.compress(TEXT.encode("gb18030")), "GB18030"),
        ("a.txt", TEXT.encode("utf-16"), "UTF-16"),
        ("a.txt", ("𠮷野家" + TEXT).encode("gb18030"), "GB18030"),  # four bytes for one sign
    ],
)
def test_every_compression_and_encoding_gives_the_same_utf8(name, content, encoding, tmp_path):
    path = write(tmp_path / name, content)
    expected = (("𠮷野家" if "𠮷".encode("gb18030") in content else "") + TEXT).encode()
    with open_binary(path) as handle:
        assert handle.read() == expected
        handle.seek(70_00)
        assert handle.read(11) == expected[7000:7011]
        handle.seek(3)
        assert handle.readline() == expected[3:].split(b"\n")[0] + b"\n"
    assert converted_from(path) == encoding


@pytest.mark.parametrize(
    "content",
    [
        ("résumé déjà vu, naïve café\n" * 50).encode("latin-1"),
        ("高血壓患者應當限鹽\n" * 50).encode("big5"),
        TEXT.encode() + "糖尿病。\n".encode("gb18030"),
        random.Random(5).randbytes(4000),
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9,
    ],
)
def test_what_is_no_gb18030_is_not_taken_for_it(content, tmp_path):
    path = write(tmp_path / "a.txt", content)
    assert converted_from(path) is None
    assert open_binary(path).read() == content


@pytest.mark.parametrize("word", ["药", "锟斤拷", "么", "药么药"])
def test_words_that_are_valid_in_both_encodings_decide_nothing(word, tmp_path):
    """药 in GB18030 is a letter of Abkhaz in UTF-8, 锟斤拷 is U+FFFD."""
    text = f"标题,文本\n一,{word}\n二,{word}\n三,{word}\n"
    path = write(tmp_path / "a.csv", text.encode("gb18030"))
    assert open_binary(path).read().decode() == text


def test_bytes_that_are_no_text_stay_as_they_are_in_their_line(tmp_path):
    good = "高血压患者应当限盐。\n".encode("gb18030")
    path = write(tmp_path / "a.txt", good * 9 + b"\xff\xff\n" + good)
    lines = open_binary(path).read().split(b"\n")
    assert lines[9] == b"\xff\xff" and lines[8] == lines[10] == "高血压患者应当限盐。".encode()


@pytest.mark.parametrize("cut", [1, 9, 2000])
def test_a_torn_zstd_file_is_found(cut, tmp_path):
    whole = zstandard.compress(random.Random(7).randbytes(300_000))
    for content in (whole[:-cut], whole[:9] + b"?" + whole[10:], b"no zstd at all"):
        path = write(tmp_path / "a.txt.zst", content)
        with pytest.raises(READ_ERRORS), open_binary(path) as handle:
            handle.read()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_pointer_of_git_lfs_is_not_taken_for_the_file(name, tmp_path):
    path = write(tmp_path / name, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(
        DataError, match=r"pointer of Git LFS instead of the file: .*Fetch the file with `git lfs pull`"
    ):
        list(read_raw_records(path, BadLines(9)))


def test_the_suffix_of_a_file_is_that_below_its_compression():
    names = ("a.jsonl", "a.JSON.gz", "b.c.csv.zst", "a.gz", "a", ".hidden.gz")
    assert [base_suffix(name) for name in names] == [".jsonl", ".json", ".csv", "", "", ""]
