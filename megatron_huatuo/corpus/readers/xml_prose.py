"""The running text of an element of JATS, BITS or PubMed: paragraphs as lines, marks of citations taken out, mathematics told.

Invariant: a number is never joined with one that stands raised, lowered or below a line beside it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator

from megatron_huatuo.text.markup import raised_or_lowered

_BLOCKS = frozenset((
    "abstract", "body", "sec", "title", "p", "list", "list-item", "def-list", "def-item", "term", "def",
    "disp-quote", "boxed-text", "speech", "verse-group", "verse-line", "statement", "disp-formula", "preformat",
    "AbstractText",
))  # fmt: skip
# Content that has no place in running text, and what it would be missed for.
_LEFT_OUT = frozenset((
    "table-wrap", "table", "fig", "fig-group", "graphic", "inline-graphic", "media", "supplementary-material",
    "chem-struct", "chem-struct-wrap", "array", "fn",
))  # fmt: skip
# Nothing to read: references and their labels, names, numbers of grants, keywords, related objects, alternative texts.
NOTHING_TO_READ = frozenset((
    "ref-list", "ref", "label", "object-id", "sec-meta", "kwd-group", "contrib-group", "aff", "author-notes",
    "fn-group", "ack", "alt-text", "long-desc", "attrib", "permissions", "index-term", "related-article",
    "related-object", "custom-meta-group", "annotation", "annotation-xml",
))  # fmt: skip
_MARK = "left out: mark of a citation"
_BETWEEN_MARKS = " ,;.–—-\n"
_CITED_BY_NUMBER = re.compile(r"[\s\d,;.\-–—†*\[\]()S]*")
_EMPTY_BRACKETS = re.compile(r"\s?(?:\[[\s,;–—-]*\]|\([\s,;–—-]*\))")
_TEX_TEXT = re.compile(r"\\begin\{document\}(.*)\\end\{document\}", re.DOTALL)


def local_name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace; "" for comments and instructions."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def prose(element: ElementTree.Element, notes: Counter[str], *, without_title: bool = False) -> str:
    """The text of an element: a paragraph, title or list item per line, single spaces.

    notes: counts what is left out, by element, and marks of citations. without_title: leave the element's own title out,
    where it is told elsewhere.
    """
    skipped = next((child for child in element if local_name(child) == "title"), None) if without_title else None
    lines = [""]
    for piece in _pieces(element, notes, skipped):
        if piece is None:
            lines.append("")
        else:
            lines[-1] += piece
    cleaned = (" ".join(_EMPTY_BRACKETS.sub("", line).split()) for line in lines)
    return "\n".join(line for line in cleaned if line)


def _pieces(
    element: ElementTree.Element, notes: Counter[str], skipped: ElementTree.Element | None
) -> Iterator[str | None]:
    """Texts in their order; None where a line ends."""
    before = element.text or ""
    yield before
    for child in element:
        name, after = local_name(child), child.tail or ""
        if child is skipped or name in NOTHING_TO_READ or not name:
            told: list[str | None] = []
        elif name in _LEFT_OUT:
            notes[f"left out: {name}"] += 1
            told = []
        elif name in ("sup", "sub"):
            marks = notes.get(_MARK, 0)
            inside = "".join(piece or "" for piece in _pieces(child, notes, None))
            is_mark = notes.get(_MARK, 0) > marks and not inside.strip(_BETWEEN_MARKS)
            told = [] if is_mark else [raised_or_lowered(name, inside, before, after)]
        elif name == "xref" and child.get("ref-type") in ("bibr", "fn", "table-fn") and _is_number(child):
            notes[_MARK] += 1
            told = []
        elif name in ("math", "tex-math", "alternatives"):
            told = [_told_formula(child, notes)]
        elif name in ("break", "br"):
            told = [" "]
        elif name in _BLOCKS:
            told = [None, *_pieces(child, notes, None), None]
        else:
            told = list(_pieces(child, notes, None))
        yield from told
        yield after
        before = next((piece for piece in (after, *reversed(told)) if piece), before)


def _is_number(reference: ElementTree.Element) -> bool:
    return _CITED_BY_NUMBER.fullmatch("".join(reference.itertext())) is not None


def _told_formula(element: ElementTree.Element, notes: Counter[str]) -> str:
    """A formula as plain text: MathML where there is some, else TeX; a picture is left out."""
    if local_name(element) == "alternatives":
        found = {local_name(child): child for child in element}
        for name in ("math", "tex-math", "textual-form"):
            if name in found:
                return _told_formula(found[name], notes)
        notes["left out: graphic"] += 1
        return ""
    if local_name(element) == "tex-math":
        text = "".join(element.itertext())
        match = _TEX_TEXT.search(text)
        return (match[1] if match else text).strip().strip("$").strip()
    return _told_math(element)


def _told_math(element: ElementTree.Element) -> str:
    """MathML by its structure: powers, indices, fractions and roots are told apart from what they stand at."""
    name = local_name(element)
    if name in NOTHING_TO_READ:
        return ""
    parts = [told for child in element if (told := _told_math(child))]
    if name in ("msup", "mover") and len(parts) == 2:
        return parts[0] + raised_or_lowered("sup", parts[1], parts[0], "")
    if name in ("msub", "munder") and len(parts) == 2:
        return f"{parts[0]}_{_grouped(parts[1])}"
    if name in ("msubsup", "munderover") and len(parts) == 3:
        return f"{parts[0]}_{_grouped(parts[1])}^{_grouped(parts[2])}"
    if name == "mfrac" and len(parts) == 2:
        return f"{_grouped(parts[0])}/{_grouped(parts[1])}"
    if name in ("msqrt", "mroot") and parts:
        return f"√{_grouped(''.join(parts[:1] if name == 'mroot' else parts))}"
    if name in ("mtr", "mlabeledtr"):
        return " ".join(parts)
    if name == "mtable":
        return "; ".join(parts)
    text = " ".join((element.text or "").split())
    joined = text
    for part in parts:  # neighbouring numbers stay two numbers
        joined += f" {part}" if joined[-1:].isalnum() and part[:1].isalnum() else part
    return joined


def _grouped(text: str) -> str:
    return text if len(text) == 1 or text.isalnum() else f"({text})"
