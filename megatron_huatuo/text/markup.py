"""Remains of web pages in text: entities and tags become the text that they stood for; raised and lowered signs stay told.

Invariant: linear time; no letter or digit outside of tags, comments, scripts and styles is lost, and no two numbers are
joined. Only elements of HTML and names with a colon (<o:p>) are tags: "P<0.05", "a<b and c>d", <答> and </s> are text.
"""

from __future__ import annotations

import html
import re
from collections import Counter

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_ESCAPED_TWICE = 3  # "&amp;amp;lt;" is seen, as often as it is unescaped
_HIDDEN = (("<!--", "-->"), ("<script", "</script>"), ("<style", "</style>"))
_LINES = (
    "address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head",
    "header", "hr", "html", "legend", "li", "main", "menu", "nav", "ol", "option", "p", "pre", "section", "select",
    "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul",
)  # fmt: skip
_CELLS = ("td", "th")
# Not <s>: </s> is more often the end of a sequence than of a line through text.
_INLINE = (
    "a", "abbr", "acronym", "audio", "b", "base", "bdi", "bdo", "big", "button", "canvas", "cite", "code", "col",
    "colgroup", "data", "datalist", "del", "dfn", "dir", "em", "embed", "font", "frame", "frameset", "i", "iframe",
    "img", "input", "ins", "kbd", "label", "link", "map", "mark", "meta", "meter", "nobr", "noscript", "object",
    "optgroup", "output", "param", "picture", "progress", "q", "rp", "rt", "ruby", "samp", "script", "small",
    "source", "span", "strike", "strong", "style", "sub", "sup", "svg", "template", "textarea", "time", "track",
    "tt", "u", "var", "video", "wbr",
)  # fmt: skip
_ATTRIBUTE = r"""\s+(?:[A-Za-z_:@][\w:.-]*\s*=\s*(?:"[^"]{0,2000}"|'[^']{0,2000}'|[^\s"'<>]+)|checked|disabled|nowrap|async|defer|hidden)"""
_NAMES = "|".join(sorted([*_LINES, *_CELLS, *_INLINE], key=len, reverse=True))
_TAG = re.compile(rf"</?({_NAMES}|[a-z][a-z0-9]*:[a-z][a-z0-9]*)(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
_RAISED = re.compile(r"<(sup|sub)>([^<>]{0,80})</\1>")
_ORDINAL = re.compile("(?:st|nd|rd|th|TM|[®™©*†‡§¶])")
_BRACKETED = re.compile(r"[\[(（【].*[\])）】]", re.DOTALL)
_PLAIN_EXPONENT = re.compile(r"[\w+\-−–.,/*°]+")


def strip_markup(text: str, counts: Counter[str] | None = None) -> str:
    """Text without entities, tags, comments, scripts and styles; elements of blocks become line ends, cells spaces.

    counts: receives "HTML entity", "HTML tag" and "HTML comment or script".

    >>> strip_markup("<p>血压&gt;140/90&nbsp;mmHg，菌落10<sup>5</sup>个</p>P&lt;0.05")
    '\\n血压>140/90\\xa0mmHg，菌落10^5个\\nP<0.05'
    """
    tally: Counter[str] = Counter() if counts is None else counts
    for _ in range(_ESCAPED_TWICE):
        if "&" not in text:
            break
        text = _ENTITY.sub(lambda match: _unescape(match[0], tally), text)
    if "<" not in text:
        return text
    for start, end in _HIDDEN:
        text = _without_hidden(text, start, end, tally)
    text = _TAG.sub(lambda match: _replace_tag(match, tally), text)
    if "<su" in text:
        text = _RAISED.sub(
            lambda match: raised_or_lowered(
                match[1],
                match[2],
                match.string[max(0, match.start() - 2) : match.start()],
                match.string[match.end() :][:1],
            ),
            text,
        )
        # One that was cut off, or is long: a raised number must not join the one before it.
        text = text.replace("<sup>", "^").replace("<sub>", "_")
    return text.replace("</sup>", "").replace("</sub>", "")


def raised_or_lowered(kind: str, content: str, before: str, after: str) -> str:
    """How plain text tells a superscript ("sup") or subscript ("sub") between the signs `before` and `after`.

    >>> "10" + raised_or_lowered("sup", "5", "10", "个"), "m" + raised_or_lowered("sup", "2", "m", ".")
    ('10^5', 'm^2')
    >>> "H" + raised_or_lowered("sub", "2", "H", "O"), "log" + raised_or_lowered("sub", "2", "g", "8") + "8"
    ('H2', 'log_2 8')
    >>> "37" + raised_or_lowered("sup", "o", "37", "C"), "20" + raised_or_lowered("sup", "th", "20", " ")
    ('37°', '20th')
    """
    content = content.strip()
    if not content:
        return ""
    joins = content[-1].isdigit() and after[:1].isdigit()
    if kind == "sub":
        told = f"_{content}" if joins or (before[-1:].isdigit() and content[0].isdigit()) else content
    elif content in "oOº°" and before.strip()[-1:].isdigit():
        told = "°"
    elif _ORDINAL.fullmatch(content) or _BRACKETED.fullmatch(content):
        told = content
    else:
        told = f"^{content}" if _PLAIN_EXPONENT.fullmatch(content) else f"^({content})"
    return f"{told} " if joins else told


def _unescape(entity: str, counts: Counter[str]) -> str:
    found = html.unescape(entity)
    counts["HTML entity"] += found != entity
    return found


def _without_hidden(text: str, start: str, end: str, counts: Counter[str]) -> str:
    """Text without what stands between two marks, letters of any case; what has no end stays."""
    lowered = text.lower() if len(text.lower()) == len(text) else text
    kept, place = [], 0
    while (begin := lowered.find(start, place)) >= 0 and (stop := lowered.find(end, begin)) >= 0:
        kept.append(text[place:begin])
        place = stop + len(end)
        counts["HTML comment or script"] += 1
    return "".join([*kept, text[place:]]) if kept else text


def _replace_tag(match: re.Match[str], counts: Counter[str]) -> str:
    counts["HTML tag"] += 1
    name = match[1].lower()
    if name in ("sup", "sub"):
        return f"</{name}>" if match[0].startswith("</") else f"<{name}>"
    return "\n" if name in _LINES else " " if name in _CELLS else ""
