"""Every input format gives its documents, with their place, and names what is wrong."""

from __future__ import annotations

import gzip

import pytest

from megatron_huatuo.corpus import CurationSettings, curate
from megatron_huatuo.corpus.readers.read_files import find_reader
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines

PUBMED = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet SYSTEM "http://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_190101.dtd">
<PubmedArticleSet>
<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="1">101</PMID><Article>
<Journal><JournalIssue><PubDate><Year>2019</Year></PubDate></JournalIssue><Title>A Journal</Title></Journal>
<ArticleTitle>Effect of <i>aspirin</i> on fever &amp; pain.</ArticleTitle>
<Abstract><AbstractText Label="BACKGROUND">Aspirin lowers fever.</AbstractText>
<AbstractText Label="RESULTS">H<sub>2</sub>O intake did not matter.</AbstractText></Abstract>
<Language>eng</Language></Article></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>102</PMID><Article><ArticleTitle>No abstract.</ArticleTitle></Article></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><Article><ArticleTitle>No id.</ArticleTitle></Article></MedlineCitation></PubmedArticle>
<PubmedArticle><MedlineCitation><PMID>104</PMID><Article><ArticleTitle>[中文]</ArticleTitle>
<Abstract><AbstractText>Plain abstract of a Chinese article.</AbstractText></Abstract><Language>chi</Language></Article></MedlineCitation></PubmedArticle>
</PubmedArticleSet>
"""


def read(path, source=None, allowed=0):
    bad = BadLines(allowed)
    return list(find_reader(str(path))(str(path), source, bad)), bad


@pytest.mark.parametrize("name", ["pubmed19n0001.xml", "pubmed19n0001.xml.gz"])
def test_pubmed_articles(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(PUBMED.encode()) if name.endswith("gz") else PUBMED.encode())
    items, bad = read(path, allowed=1)
    assert [(item.document.id, item.line) for item in items] == [
        ("pubmed-101", 1),
        ("pubmed-102", 2),
        ("pubmed-104", 4),
    ]
    first = items[0].document
    assert first.title == "Effect of aspirin on fever & pain." and (first.source, first.language) == ("pubmed", "en")
    assert first.text == "BACKGROUND: Aspirin lowers fever.\nRESULTS: H2O intake did not matter."
    assert first.metadata == {"pmid": "101", "journal": "A Journal", "year": "2019", "article_language": "en"}
    assert items[1].document.text == "" and items[2].document.metadata["article_language"] == "zh"
    assert [(line.line, line.reason) for line in bad.lines] == [(3, "article without PMID")]


def test_marks_of_an_export_are_no_text_of_an_abstract(tmp_path):
    path, found = tmp_path / "p.xml", '<AbstractText Label="BACKGROUND">Aspirin lowers fever.</AbstractText>'
    marked = '<AbstractText Label="UNLABELLED">Aspirin helps.</AbstractText><AbstractText Label="METHODS: ">We asked.<br/>Then (ABSTRACT TRUNCATED AT 250 WORDS)</AbstractText>'
    path.write_text(PUBMED.replace(found, marked))
    items, bad = read(path, allowed=1)
    assert items[0].document.text.startswith("Aspirin helps.\nMETHODS: We asked. Then\nRESULTS: ")
    assert bad.tolerated == {"left out: mark of a cut abstract": 1}


def test_a_torn_pubmed_file_is_named(tmp_path):
    path = tmp_path / "p.xml"
    path.write_bytes(PUBMED.encode()[: PUBMED.index("<PMID>104")])
    with pytest.raises(DataError, match=r"incomplete or not XML after article 3.*p\.xml"):
        read(path, allowed=1)
    for content in (b"", b"no xml"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="incomplete or not XML after article 0"):
            read(path)
    path = tmp_path / "p.xml.gz"
    path.write_bytes(gzip.compress(PUBMED.encode())[:-30])
    with pytest.raises(DataError, match="incomplete or not XML"):
        read(path, allowed=1)


def test_names_of_signs_are_read_and_an_unknown_one_is_named(tmp_path):
    path = tmp_path / "p.xml"
    path.write_text(PUBMED.replace("Aspirin lowers", "&beta;-blockers &amp; aspirin lower"))
    assert read(path, allowed=1)[0][0].document.text.startswith("BACKGROUND: β-blockers & aspirin lower fever.")
    path.write_text(PUBMED.replace("Aspirin lowers", "&ourdrug; lowers"))
    with pytest.raises(DataError, match=r"undefined entity &ourdrug;.*p\.xml\)\. Write the sign"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PUBMED + PUBMED, "after article 4: junk after document element.*Several documents in one file are not XML"),
        ("\n" + PUBMED, r"after article 0: XML or text declaration not at start.*Take out what stands before <\?xml"),
        (PUBMED.replace("fever.", "\x0b fever."), "invalid token.*Mend that place, or let `xmllint --recover` do it"),
        ("<html><br></html>", "mismatched tag.*a page of a web server is no XML"),
        (PUBMED[:-40], "no element found|unclosed token.*Copy it again"),
    ],
    ids=["two", "blank", "control", "page", "torn"],
)  # fmt: skip
def test_what_is_not_xml_is_told_with_what_helps(content, message, tmp_path):
    (tmp_path / "p.xml").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "p.xml", allowed=1)


def test_an_exploding_entity_is_refused(tmp_path):
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY l0 "ha">{levels}]><PubmedArticleSet><b>&l11;</b></PubmedArticleSet>'
    (tmp_path / "bomb.xml").write_text(bomb)
    with pytest.raises(DataError, match="incomplete or not XML"):
        read(tmp_path / "bomb.xml")


def test_chapters_of_a_book(tmp_path):
    path = tmp_path / "内科学.txt"
    text = "﻿前言\n写给读者。\n第一章 高血压\n血压升高。\n\n需要治疗。\n第二章\n糖尿病。\n  Chapter 3 Asthma\nAsthma is common.\n"
    path.write_text(text, "utf-8")
    items, _ = read(path, "books")
    assert [(item.document.title, "".join(item.document.text.split()), item.line) for item in items] == [
        (None, "前言写给读者。", 1),
        ("第一章 高血压", "血压升高。需要治疗。", 3),
        ("第二章", "糖尿病。", 7),
        ("Chapter 3 Asthma", "Asthmaiscommon.", 9),
    ]
    assert [item.document.id for item in items] == [f"内科学.txt-{number}" for number in (1, 2, 3, 4)]
    assert items[3].document.language == "en" and items[1].document.language == "zh"
    for item in items[1:]:
        assert path.read_bytes()[item.offset :].decode().lstrip().startswith(item.document.title)


def test_plain_text_needs_a_source_and_names_lines_that_are_no_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("高血压。\n".encode() + "糖尿病。\n".encode("gb18030") + "哮喘。\n".encode())
    with pytest.raises(DataError, match=r"plain text does not name its own.*--source"):
        read(path)
    with pytest.raises(DataError, match=r"invalid UTF-8: byte 0 \(.*a\.txt:2\)"):
        read(path, "books")
    items, bad = read(path, "books", allowed=1)
    assert items[0].document.text == "高血压。\n哮喘。\n" and len(bad.lines) == 1


def test_parquet_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    rows = {"text": ["Aspirin lowers fever.", None, "高血压需要治疗。"], "id": ["a", "b", "c"], "url": ["u", "v", None]}
    parquet.write_table(pyarrow.table(rows), path)
    with pytest.raises(DataError, match=r"wrong value of 'text'.*a\.parquet:2"):
        read(path, "web")
    items, bad = read(path, "web", allowed=1)
    assert [(i.document.id, i.document.language, i.line) for i in items] == [("a", "en", 1), ("c", "zh", 3)]
    assert items[0].document.metadata == {"url": "u"} and items[1].document.metadata is None and len(bad.lines) == 1
    parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(
        DataError, match=r"got nothing, need one of the keys \['body'\] to be renamed \(.*a\.parquet:1\)"
    ):
        read(path, "web")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="incomplete or not Parquet"):
        read(path, "web")


def test_c4_shards_are_json_lines_whatever_their_name(tmp_path):
    path = tmp_path / "c4-train.00000-of-01024.json.gz"
    path.write_bytes(gzip.compress(b'{"text": "Aspirin lowers fever.", "timestamp": "2019", "url": "http://x"}\n' * 2))
    items, _ = read(path, "web")
    assert [item.document.id for item in items] == [f"{path.name}:1", f"{path.name}:2"]
    assert items[0].document.metadata == {"timestamp": "2019", "url": "http://x"}


def test_formats_meet_in_one_corpus(tmp_path):
    (tmp_path / "p.xml").write_text(PUBMED, "utf-8")
    (tmp_path / "b.txt").write_text("第一章 高血压\n高血压患者应减少食盐摄入，并遵医嘱长期服药。\n", "utf-8")
    report = curate(
        [tmp_path / "p.xml", tmp_path / "b.txt"], tmp_path / "out", CurationSettings(source="mixed", max_bad_lines=1)
    )
    assert (report["documents_in"], report["documents_out"]) == (4, 3)
    assert report["rejected_by_reason"] == {"article without PMID": 1, "blank text": 1}
