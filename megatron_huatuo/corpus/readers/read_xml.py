"""XML of medical literature: PubMed, full texts in JATS (PubMed Central), books in BITS (NCBI Bookshelf), MedQuAD.

Invariant: every text of a document is read, or its element carries nothing for a reader (names, references, numbers of
grants), or it is counted as left out under the element's name. A file of another kind is refused by the name of its root.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html.entities import html5
from pathlib import Path
from xml.parsers.expat import errors as expat_errors

from megatron_huatuo.corpus.account import Item
from megatron_huatuo.corpus.readers.xml_prose import NOTHING_TO_READ, local_name, prose
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Document
from megatron_huatuo.storage.text_files import READ_ERRORS, converted_from, open_binary
from megatron_huatuo.text.language import detect_language

Element = ElementTree.Element

_KINDS = "PubmedArticle (PubMed), article (JATS), book-part (BITS) or Document with QAPairs (MedQuAD)"
_MOST_UNKNOWN = 1_000_000  # elements without one of these, before the file is given up
# Names that the document types of publishers define, as files that are read without their document type use them.
_ENTITIES = {name.removesuffix(";"): text for name, text in html5.items()}
_ADVICE = {
    expat_errors.codes[reason]: advice
    for reason, advice in {
        expat_errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT: "Several documents in one file are not XML: give each a file of its own.",
        expat_errors.XML_ERROR_MISPLACED_XML_PI: "Take out what stands before <?xml …?>.",
        expat_errors.XML_ERROR_INVALID_TOKEN: "Mend that place, or let `xmllint --recover` do it.",
        expat_errors.XML_ERROR_UNDEFINED_ENTITY: "Write the sign that the entity stands for.",
        expat_errors.XML_ERROR_TAG_MISMATCH: "Mend that place; a page of a web server is no XML.",
    }.items()
}
_TRUNCATED = re.compile(r"\s*\(ABSTRACT TRUNCATED(?: AT \d+ WORDS)?\)\s*$")
_LANGUAGES = {"eng": "en", "chi": "zh"}
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass
class _Context:
    """Where a unit stands. stem: name for documents without ids; around: the elements around the unit; notes: see `prose`."""

    source: str | None
    stem: str
    notes: Counter[str]
    around: list[Element] = field(default_factory=list)


def read_xml(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """Documents of an XML file; the line of an item is the number of its article, chapter or page in the file.

    * PubMed: an article or book article with its abstract, and one more for each abstract in other words or another
      language; blank where there is none. Deleted citations are counted.
    * JATS: the abstract, and each section of the first level; the title is "ARTICLE: SECTION".
    * BITS: the same of each chapter.
    * MedQuAD: an answer, with its question as title.

    Memory is flat in the number of articles. Raises: DataError when the file is incomplete, not XML, or of another kind.
    """
    number, root, is_known, elements = 0, "", False, 0
    context = _Context(source, Path(path).name.split(".")[0], bad_lines.tolerated)
    encoding = converted_from(path)
    if encoding:
        context.notes[f"file in {encoding}"] += 1
    with open_binary(path) as handle:
        parser = ElementTree.XMLParser(encoding="utf-8" if encoding else None)
        parser.entity.update(_ENTITIES)
        try:
            for event, element in ElementTree.iterparse(handle, ("start", "end"), parser):
                if event == "start":
                    root = root or local_name(element)
                    context.around.append(element)
                    continue
                context.around.pop()
                documents = _READERS.get(local_name(element), _no_unit)(element, context)
                elements += 1
                if documents is None:
                    if elements > _MOST_UNKNOWN and not is_known:
                        break
                    continue
                is_known = True
                number += bool(documents)
                for document in documents:
                    if document.id:
                        yield Item(document, path, number)
                    else:
                        bad_lines.add(path, number, "article without PMID")
                if context.around:
                    context.around[-1].remove(element)  # takes no memory, and is not read again with its parent
        except (ElementTree.ParseError, *READ_ERRORS) as error:
            advice = _ADVICE.get(getattr(error, "code", -1), "Copy it again.")
            raise DataError(
                f"file is incomplete or not XML after article {number}: {error} ({path}). {advice}"
            ) from error
    if not is_known:
        raise DataError(f"XML of an unknown kind: got <{root}>, need {_KINDS} ({path}). Convert it to JSON Lines.")


def _no_unit(element: Element, context: _Context) -> None:
    return None


def _read_pubmed(article: Element, context: _Context) -> list[Document]:
    """A PubmedArticle or PubmedBookArticle; its id is "" without PMID."""
    pmid = article.findtext("./MedlineCitation/PMID") or article.findtext("./BookDocument/PMID")
    if not pmid:
        return [Document("", "", "", "")]
    notes, language = context.notes, article.findtext(".//Language")
    metadata = {
        "pmid": pmid,
        "journal": article.findtext(".//Journal/Title"),
        "book": article.findtext(".//BookTitle"),
        "year": article.findtext(".//PubDate/Year"),
        "article_language": _LANGUAGES.get(language or "", language),
        "vernacular_title": article.findtext(".//VernacularTitle"),
    }
    known = {name: value for name, value in metadata.items() if value}
    source = context.source or "pubmed"
    title = _line(article.find(".//ArticleTitle"), notes) or known.get("book")
    text = _abstract(article.find(".//Abstract"), notes)
    documents = [Document(f"pubmed-{pmid}", source, "en", text, title, known)]
    for other in article.findall(".//OtherAbstract"):
        kind = f"{other.get('Type', 'other')}-{other.get('Language', 'eng')}"
        text = _abstract(other, notes)
        about = {**known, "abstract": kind}
        documents.append(Document(f"pubmed-{pmid}-{kind}", source, detect_language(text), text, title, about))
    return documents


def _abstract(element: Element | None, notes: Counter[str]) -> str:
    """The sections of an abstract, each with its label, without the marks that MEDLINE puts into exported texts."""
    lines = []
    for part in _children(element, "AbstractText"):
        label = (part.get("Label") or "").strip(" :")
        text, marks = _TRUNCATED.subn("", prose(part, notes))
        if marks:
            notes["left out: mark of a cut abstract"] += marks
        if text:
            lines.append(f"{label}: {text}" if label and label.upper() != "UNLABELLED" else text)
    return "\n".join(lines)


def _count_deleted(element: Element, context: _Context) -> list[Document]:
    context.notes["left out: deleted citation"] += len(element.findall("PMID"))
    return []


def _read_article(article: Element, context: _Context) -> list[Document]:
    """A full text of JATS."""
    notes, meta = context.notes, _child(article, "front", "article-meta")
    ids = {one.get("pub-id-type") or "": (one.text or "").strip() for one in _children(meta, "article-id")}
    ids = {kind: ids[kind] for kind in ("pmcid", "pmc", "pmid", "doi") if ids.get(kind)}
    metadata = {
        **ids,
        "journal": _line(_child(article, "front", "journal-meta", "journal-title-group", "journal-title"), notes),
        "year": _line(_child(meta, "pub-date", "year"), notes),
        "license": _line(_child(meta, "permissions", "license"), notes)[:200],
        "article_type": article.get("article-type"),
        "article_language": article.get(_LANGUAGE),
    }
    parts = [*_children(meta, "abstract"), *_children(meta, "trans-abstract"), *_sections(_child(article, "body"))]
    others = [one for one in article if local_name(one) in ("sub-article", "response", "floats-group")]
    others += [one for one in _children_of(article, "back") if local_name(one) not in NOTHING_TO_READ]
    notes.update(f"left out: {local_name(one)} behind the body" for one in others)
    name = next((f"{kind}-{value}" for kind, value in ids.items()), context.stem)
    title = _line(_child(meta, "title-group", "article-title"), notes)
    return _documents(name, context.source or "pmc", title, parts, metadata, notes)


def _read_chapter(part: Element, context: _Context) -> list[Document]:
    """A chapter of BITS; nothing for a part that holds only chapters, which were read by themselves."""
    notes, meta = context.notes, _child(part, "book-part-meta")
    parts = [*_children(meta, "abstract"), *_sections(_child(part, "body"))]
    if not parts:
        return []
    book = next((found for one in context.around if (found := _child(one, "book-meta")) is not None), None)
    metadata = {
        "book": _line(_child(book, "book-title-group", "book-title"), notes),
        "year": _line(_child(meta, "pub-date", "year"), notes) or _line(_child(book, "pub-date", "year"), notes),
    }
    ids = [*((one.text or "").strip() for one in _children(meta, "book-part-id")), part.get("id"), context.stem]
    others = [one for one in _children_of(part, "back") if local_name(one) not in NOTHING_TO_READ]
    notes.update(f"left out: {local_name(one)} behind the body" for one in others)
    title = _line(_child(meta, "title-group", "title"), notes)
    return _documents(next(filter(None, ids)), context.source or "books", title, parts, metadata, notes)


def _count_front(element: Element, context: _Context) -> list[Document]:
    context.notes[f"left out: {local_name(element)} of a book"] += 1
    return []


def _sections(body: Element | None) -> list[Element]:
    """The first level of a body: what stands outside of sections as one part, and each section."""
    if body is None:
        return []
    outside = ElementTree.Element("body")
    outside.extend(child for child in body if local_name(child) != "sec")
    return [outside, *_children(body, "sec")] if len(outside) else _children(body, "sec")


def _documents(
    name: str, source: str, title: str, parts: list[Element], metadata: Mapping[str, str | None], notes: Counter[str]
) -> list[Document]:
    """One document for each part that has text, named NAME-1, NAME-2, …; one blank document where none has."""
    known = {key: value for key, value in metadata.items() if value}
    documents: list[Document] = []
    for part in parts:
        heading = _line(_child(part, "title"), notes) if local_name(part) == "sec" else ""
        if text := prose(part, notes, without_title=True):
            full_title = ": ".join(filter(None, (title, heading))) or None
            identity = f"{name}-{len(documents) + 1}"
            documents.append(Document(identity, source, detect_language(text), text, full_title, known or None))
    return documents or [Document(name, source, "en", "", title or None, known or None)]


def _read_medquad(page: Element, context: _Context) -> list[Document] | None:
    documents = []
    for number, pair in enumerate(page.findall("./QAPairs/QAPair"), start=1):
        question, answer = _child(pair, "Question"), _child(pair, "Answer")
        # The line ends of an answer are all the structure that it has.
        text = "" if answer is None else re.sub(r"[ \t]*\n\s*", "\n", "".join(answer.itertext())).strip()
        about = {
            "focus": page.findtext("Focus"),
            "url": page.get("url"),
            "question_type": None if question is None else question.get("qtype"),
        }
        name = (None if question is None else question.get("qid")) or f"{page.get('id') or context.stem}-{number}"
        source = context.source or page.get("source") or "medquad"
        known = {key: value for key, value in about.items() if value}
        language = detect_language(text) if text else "en"
        documents.append(Document(name, source, language, text, _line(question, context.notes) or None, known or None))
    return documents or None


def _child(element: Element | None, *names: str) -> Element | None:
    """The first child of a name, its first child of the next name, …; names without their namespace."""
    for name in names:
        element = next(iter(_children(element, name)), None)
    return element


def _children(element: Element | None, name: str) -> list[Element]:
    return [] if element is None else [child for child in element if local_name(child) == name]


def _children_of(element: Element, name: str) -> list[Element]:
    return list(_child(element, name) or ())


def _line(element: Element | None, notes: Counter[str]) -> str:
    return "" if element is None else prose(element, notes).replace("\n", " ")


Reader = Callable[[Element, _Context], list[Document] | None]
_READERS: dict[str, Reader] = {
    "PubmedArticle": _read_pubmed, "PubmedBookArticle": _read_pubmed, "DeleteCitation": _count_deleted,
    "article": _read_article, "book-part": _read_chapter, "Document": _read_medquad,
    **dict.fromkeys(("front-matter-part", "foreword", "preface", "book-app", "glossary"), _count_front),
}  # fmt: skip
