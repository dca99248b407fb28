"""XML of medical literature in its published shapes: every text is read, or counted by the element that held it."""

from __future__ import annotations

import pytest

from megatron_huatuo.corpus import CurationSettings, curate
from megatron_huatuo.corpus.readers.read_files import find_reader
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines, read_jsonl

JATS = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.2 20190208//EN" "JATS-archivearticle1.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="research-article" xml:lang="en">
<front><journal-meta><journal-id journal-id-type="nlm-ta">A J</journal-id><journal-title-group><journal-title>A Journal</journal-title></journal-title-group></journal-meta>
<article-meta><article-id pub-id-type="pmid">31234567</article-id><article-id pub-id-type="pmc">6543210</article-id><article-id pub-id-type="doi">10.1000/x</article-id>
<title-group><article-title>Inhaled steroids in <italic>asthma</italic></article-title></title-group>
<contrib-group><contrib><name><surname>Li</surname></name></contrib></contrib-group><aff id="a1">A hospital</aff>
<pub-date pub-type="epub"><year>2019</year></pub-date>
<permissions><license><license-p>CC BY 4.0</license-p></license></permissions>
<abstract><title>Abstract</title><sec><title>Background</title><p>Asthma is a chronic disease of the airways.</p></sec></abstract>
<trans-abstract xml:lang="zh"><title>摘要</title><p>哮喘是气道的慢性炎症性疾病，吸入激素是首选药物。</p></trans-abstract>
<kwd-group><kwd>asthma</kwd></kwd-group></article-meta></front>
<body><p>A note before the first section.</p>
<sec id="s1"><label>1</label><title>Methods</title>
<p>We counted 4.5 × 10<sup>5</sup> cells per cm<sup>2</sup> in H<sub>2</sub>O, as before<sup><xref ref-type="bibr" rid="B1">1</xref>,<xref ref-type="bibr" rid="B2">2</xref></sup> and elsewhere [<xref ref-type="bibr" rid="B3">3</xref>, <xref ref-type="bibr" rid="B4">4</xref>], see <xref ref-type="table" rid="T1">Table 1</xref> and <xref ref-type="bibr" rid="B5">Li et al., 2018</xref>.</p>
<list list-type="bullet"><list-item><label>•</label><p>First item.</p></list-item><list-item><p>Second item.</p></list-item></list>
<sec><title>Statistics</title><p>The mean was <inline-formula><alternatives><tex-math>\\documentclass{minimal}\\begin{document}$10^5$\\end{document}</tex-math><mml:math><mml:msup><mml:mn>10</mml:mn><mml:mn>5</mml:mn></mml:msup></mml:math></alternatives></inline-formula> and half of it <inline-formula><mml:math><mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn></mml:mfrac></mml:math></inline-formula>.</p></sec>
<table-wrap id="T1"><label>Table 1</label><caption><p>Doses.</p></caption><table><tr><td>1</td></tr></table></table-wrap>
<fig id="F1"><caption><p>A lung.</p></caption></fig></sec>
<sec><title>Results</title><p>Wheezing became rarer.<fn id="f1"><p>Footnote.</p></fn></p></sec></body>
<back><ack><p>We thank all.</p></ack><sec><title>Data availability</title><p>On request.</p></sec><ref-list><ref id="B1"><mixed-citation>Old work.</mixed-citation></ref></ref-list></back>
<sub-article article-type="reply"><body><p>A reply.</p></body></sub-article></article>
"""

BITS = """<?xml version="1.0"?>
<!DOCTYPE book PUBLIC "-//NLM//DTD BITS Book Interchange DTD v2.0 20151225//EN" "BITS-book2.dtd">
<book><book-meta><book-title-group><book-title>Internal Medicine</book-title></book-title-group><pub-date><year>2018</year></pub-date></book-meta>
<front-matter><preface><named-book-part-body><p>To the reader.</p></named-book-part-body></preface></front-matter>
<book-body><book-part book-part-type="part" id="p1"><book-part-meta><title-group><title>Heart</title></title-group></book-part-meta><body>
<book-part book-part-type="chapter" id="ch1"><book-part-meta><book-part-id book-part-id-type="pmcid">NBK101</book-part-id><title-group><title>Hypertension</title></title-group></book-part-meta>
<body><sec><title>Treatment</title><p>Less salt is the first step.</p></sec></body><back><ref-list><ref><mixed-citation>x</mixed-citation></ref></ref-list></back></book-part>
<book-part book-part-type="chapter" id="ch2"><book-part-meta><title-group><title>Angina</title></title-group></book-part-meta>
<body><p>Pain behind the breastbone.</p></body></book-part></body></book-part></book-body></book>
"""

MEDQUAD = """<?xml version="1.0" encoding="UTF-8"?>
<Document id="0000559" source="GHR" url="https://example.org/keratoderma">
<Focus>Keratoderma</Focus><FocusAnnotations><UMLS><CUIs><CUI>C1835662</CUI></CUIs></UMLS></FocusAnnotations>
<QAPairs><QAPair pid="1"><Question qid="0000559-1" qtype="information">What is (are) keratoderma ?</Question>
<Answer>Keratoderma is a thickening of the skin of the palms and soles.
     It may be inherited.</Answer></QAPair>
<QAPair pid="2"><Question qid="0000559-2" qtype="frequency">How many people are affected ?</Question><Answer></Answer></QAPair></QAPairs></Document>
"""

PUBMED = """<?xml version="1.0"?><PubmedArticleSet>
<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>Asthma.</ArticleTitle>
<Abstract><AbstractText>Cells grew from 10<sup>5</sup> to <mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:msup><mml:mn>10</mml:mn><mml:mn>7</mml:mn></mml:msup></mml:math> per mL.</AbstractText>
<CopyrightInformation>(c) 2019</CopyrightInformation></Abstract><Language>chi</Language><VernacularTitle>哮喘</VernacularTitle></Article>
<OtherAbstract Type="Publisher" Language="chi"><AbstractText Label="目的">评价吸入激素治疗哮喘的疗效和安全性。</AbstractText></OtherAbstract>
<OtherAbstract Type="Publisher" Language="fre"><AbstractText>Les corticoïdes inhalés sont le premier choix.</AbstractText></OtherAbstract></MedlineCitation></PubmedArticle>
<PubmedBookArticle><BookDocument><PMID>2</PMID><ArticleTitle>Gout</ArticleTitle><Book><BookTitle>StatPearls</BookTitle></Book>
<Abstract><AbstractText>Gout is an arthritis caused by crystals of uric acid.</AbstractText></Abstract></BookDocument></PubmedBookArticle>
<DeleteCitation><PMID>7</PMID><PMID>8</PMID></DeleteCitation></PubmedArticleSet>
"""


def read(path, text, source=None, allowed=0, encoding="utf-8"):
    path.write_text(text, encoding)
    bad = BadLines(allowed)
    return [item.document for item in find_reader(str(path))(str(path), source, bad)], bad


@pytest.mark.parametrize("name", ["PMC6543210.nxml", "a.xml"])
def test_a_full_text_gives_its_abstracts_and_sections(name, tmp_path):
    documents, bad = read(tmp_path / name, JATS)
    title = "Inhaled steroids in asthma"
    assert [(one.id, one.title, one.language, one.text) for one in documents] == [
        ("pmc-6543210-1", title, "en", "Background\nAsthma is a chronic disease of the airways."),
        ("pmc-6543210-2", title, "zh", "哮喘是气道的慢性炎症性疾病，吸入激素是首选药物。"),
        ("pmc-6543210-3", title, "en", "A note before the first section."),
        ("pmc-6543210-4", f"{title}: Methods", "en",
         "We counted 4.5 × 10^5 cells per cm^2 in H2O, as before and elsewhere, see Table 1 and Li et al., 2018.\n"
         "First item.\nSecond item.\nStatistics\nThe mean was 10^5 and half of it 1/2."),
        ("pmc-6543210-5", f"{title}: Results", "en", "Wheezing became rarer."),
    ]  # fmt: skip
    assert {one.source for one in documents} == {"pmc"}
    assert documents[0].metadata == {
        "pmc": "6543210", "pmid": "31234567", "doi": "10.1000/x", "journal": "A Journal", "year": "2019",
        "license": "CC BY 4.0", "article_type": "research-article", "article_language": "en",
    }  # fmt: skip
    assert bad.tolerated == {
        "left out: mark of a citation": 4, "left out: table-wrap": 1, "left out: fig": 1, "left out: fn": 1,
        "left out: sub-article behind the body": 1, "left out: sec behind the body": 1,
    }  # fmt: skip


def test_articles_within_a_reply_of_a_server_are_read_one_by_one(tmp_path):
    article = JATS[JATS.index("<article ") :].strip()
    text = f'<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><record><metadata>{article}{article}</metadata></record></OAI-PMH>'
    documents, _ = read(tmp_path / "oai.xml", text)
    assert len(documents) == 10 and documents[0].text == documents[5].text


def test_chapters_of_a_book_are_read_once_each(tmp_path):
    documents, bad = read(tmp_path / "book.xml", BITS, source="books")
    assert [(one.id, one.title, one.text) for one in documents] == [
        ("NBK101-1", "Hypertension: Treatment", "Less salt is the first step."),
        ("ch2-1", "Angina", "Pain behind the breastbone."),
    ]
    assert documents[0].metadata == {"book": "Internal Medicine", "year": "2018"}
    assert bad.tolerated == {"left out: preface of a book": 1}


def test_answers_of_medquad_have_their_question_as_title(tmp_path):
    documents, _ = read(tmp_path / "0000559.xml", MEDQUAD)
    assert (documents[0].id, documents[0].source, documents[0].title) == (
        "0000559-1",
        "GHR",
        "What is (are) keratoderma ?",
    )
    assert documents[0].text == "Keratoderma is a thickening of the skin of the palms and soles.\nIt may be inherited."
    assert documents[0].metadata == {
        "focus": "Keratoderma",
        "url": "https://example.org/keratoderma",
        "question_type": "information",
    }
    assert documents[1].text == ""  # withheld answers: counted as blank text by the first step


def test_pubmed_gives_every_abstract_and_counts_what_was_deleted(tmp_path):
    documents, bad = read(tmp_path / "p.xml", PUBMED)
    assert [(one.id, one.language, one.text) for one in documents] == [
        ("pubmed-1", "en", "Cells grew from 10^5 to 10^7 per mL."),
        ("pubmed-1-Publisher-chi", "zh", "目的: 评价吸入激素治疗哮喘的疗效和安全性。"),
        ("pubmed-1-Publisher-fre", "en", "Les corticoïdes inhalés sont le premier choix."),
        ("pubmed-2", "en", "Gout is an arthritis caused by crystals of uric acid."),
    ]
    assert documents[0].metadata["vernacular_title"] == "哮喘" and documents[3].metadata["book"] == "StatPearls"
    assert bad.tolerated == {"left out: deleted citation": 2}


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("<html><body><p>x</p></body></html>", "html"),
        ('<mediawiki xmlns="http://www.mediawiki.org/xml/"><page><text>x</text></page></mediawiki>', "mediawiki"),
        ("<Document><Title>a drug label</Title></Document>", "Document"),
        ("<TEI><text><body><p>x</p></body></text></TEI>", "TEI"),
    ],
)
def test_xml_of_another_kind_is_refused_by_its_root(text, root, tmp_path):
    with pytest.raises(DataError, match=rf"XML of an unknown kind: got <{root}>, need .*a\.xml"):
        read(tmp_path / "a.xml", text)


def test_a_document_without_any_text_is_counted_not_lost(tmp_path):
    text = "<article><front><article-meta><title-group><article-title>A letter</article-title></title-group></article-meta></front></article>"
    (tmp_path / "a.xml").write_text(text)
    (tmp_path / "m.xml").write_text(MEDQUAD)
    report = curate([tmp_path / "a.xml", tmp_path / "m.xml"], tmp_path / "out", CurationSettings(source="x"))
    assert (report["documents_in"], report["documents_out"]) == (3, 1)
    assert report["rejected_by_reason"] == {"blank text": 2}


def test_xml_in_gb18030_is_read(tmp_path):
    text = MEDQUAD.replace("UTF-8", "GB18030").replace("It may be inherited.", "可以遗传，手掌和足底的皮肤增厚。")
    documents, bad = read(tmp_path / "a.xml", text, encoding="gb18030")
    assert documents[0].text.endswith("可以遗传，手掌和足底的皮肤增厚。") and bad.tolerated == {"file in GB18030": 1}


def test_what_was_left_out_stands_in_the_report(tmp_path):
    (tmp_path / "a.nxml").write_text(JATS, "utf-8")
    report = curate([tmp_path / "a.nxml"], tmp_path / "out")
    assert report["tolerated"]["left out: table-wrap"] == 1
    texts = [line.record["text"] for line in read_jsonl(tmp_path / "out" / "documents.jsonl")]
    assert any("10^5 cells" in text for text in texts)
