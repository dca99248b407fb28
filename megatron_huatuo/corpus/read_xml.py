"""PubMed baseline and update files: articles with their abstracts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator

from megatron_huatuo.corpus.account import Item
from megatron_huatuo.errors import DataError
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.records import Document
from megatron_huatuo.storage.text_files import open_binary

_LANGUAGES = {"eng": "en", "chi": "zh"}


def read_pubmed(path: str, source: str | None, bad_lines: BadLines) -> Iterator[Item]:
    """One item an article, with a blank text where there is no abstract; its line is its number in the file.

    The language is that of the abstract, which PubMed gives in English. Memory is flat in the size of the file.
    Raises: DataError when the file is no XML or torn.
    """
    number = 0
    with open_binary(path) as handle:
        try:
            events = iter(ElementTree.iterparse(handle, events=("start", "end")))
            _, root = next(events)
            for event, element in events:
                if event == "end" and element.tag == "PubmedArticle":
                    number += 1
                    document = _to_document(element, source)
                    if document is None:
                        bad_lines.add(path, number, "article without PMID")
                    else:
                        yield Item(document, path, number)
                    root.clear()
        except (ElementTree.ParseError, EOFError, zlib.error, OSError, StopIteration) as error:
            raise DataError(
                f"file is torn or no XML after article {number}: {error} ({path}). Copy it again."
            ) from error


def _to_document(article: ElementTree.Element, source: str | None) -> Document | None:
    pmid = article.findtext(".//MedlineCitation/PMID")
    if not pmid:
        return None
    title = _text(article.find(".//ArticleTitle"))
    metadata = {
        "pmid": pmid,
        "journal": article.findtext(".//Journal/Title"),
        "year": article.findtext(".//PubDate/Year"),
        "article_language": _LANGUAGES.get(article.findtext(".//Language") or "", article.findtext(".//Language")),
    }
    return Document(
        id=f"pubmed-{pmid}",
        source=source or "pubmed",
        language="en",
        text="\n".join(filter(None, (_section(part) for part in article.findall(".//Abstract/AbstractText")))),
        title=title or None,
        metadata={name: value for name, value in metadata.items() if value},
    )


def _section(part: ElementTree.Element) -> str:
    """A section of a structured abstract with its label."""
    text, label = _text(part), part.get("Label")
    return f"{label}: {text}" if label and text else text


def _text(element: ElementTree.Element | None) -> str:
    """Text with that of the mark-up inside (<i>, <sub>)."""
    return "" if element is None else " ".join("".join(element.itertext()).split())
