"""What surrounds the answer in a reply: thoughts, channels, answer tags, tables, end tokens, markdown, full-width letters.

Invariant: what a reply thinks is never read as what it answers; one that ends inside its thoughts has no answer.
"""

from __future__ import annotations

import re

from megatron_huatuo.llm.thoughts import peel_reply
from megatron_huatuo.text.normal_form import HALF_WIDTH

_FINAL_HEADING = re.compile(
    r"^\s*#+\s*(?:final response|final answer|最终回答|最终答案)\s*:?：?\s*$", re.IGNORECASE | re.MULTILINE
)
_ANSWER_TAG = re.compile(
    r"<(answer|final_answer|final|solution|response|答案)>(.*?)</\1>"
    r"|<\|begin_of_solution\|>(?P<b>.*?)(?:<\|end_of_solution\|>|$)|\[ANSWER\](?P<c>.*?)\[/ANSWER\]",
    re.IGNORECASE | re.DOTALL,
)
_NEXT_BOX = re.compile(r"\}[\s$,，、;；和与及&]*(?:\band\b)?[\s$]*\\(?:boxed|fbox)\{")
_BOXED = re.compile(r"\\(?:boxed|fbox)\{([^{}]*)\}")
_TEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf|bf)\{([^{}]*)\}")
_TABLE_LINE = re.compile(r"^\s*\|(.*)\|\s*$", re.MULTILINE)
_TABLE_RULE = re.compile(r"^[\s|:-]*-{2,}[\s|:-]*$", re.MULTILINE)

_CIRCLED = {0x24B6 + k: chr(65 + k) for k in range(26)} | {0x24D0 + k: chr(97 + k) for k in range(26)}
_BRACKETS = dict(zip(map(ord, "【】[]〔〕{}"), "()()()()", strict=True))
_DROPPED = dict.fromkeys(map(ord, '*`#$“”"「」『』\u200b\ufeff\ufe0f'))
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_MARKS = dict.fromkeys(map(ord, "✓✔✅☑🗸"), "√") | dict.fromkeys(map(ord, "✗✘❌✖❎"), "×")
_CHARACTERS = {
    **HALF_WIDTH,
    0x3000: " ",
    ord("’"): "'",
    ord("‘"): "'",
    ord("〜"): "~",
    ord("→"): ":",
    **_CIRCLED,
    **_DASHES,
    **_MARKS,
}


def spoken_part(reply: str) -> str | None:
    """The part of a reply that answers, its tags taken off; None when the reply was cut off while it was still thinking.

    >>> spoken_part("<think>A or B?</think>B"), spoken_part("◁think▷A or"), spoken_part("<answer>C</answer>")
    ('B', None, '\\n答案:C。\\n')
    """
    text, problem = peel_reply(reply)
    if problem and not text:
        return None
    headings = list(_FINAL_HEADING.finditer(text))
    if headings and text[headings[-1].end() :].strip():
        text = "答案:\n" + text[headings[-1].end() :]
    return _ANSWER_TAG.sub(lambda match: f"\n答案:{next(filter(None, match.groups()[1:]), '').strip()}。\n", text)


def normalise(text: str) -> str:
    """Half-width ASCII, plain brackets and dashes, no markdown or quotation marks, single blanks; line breaks stay.

    Cells of a table row are parted by colons. NFKC is not used: it turns "39℃" into "39°C", which names an option.
    """
    text = _BOXED.sub(_told_box, _NEXT_BOX.sub("、", _TEX.sub(r"\1", text))).replace("\r\n", "\n")
    text = _TABLE_LINE.sub(lambda row: ": ".join(cell.strip() for cell in row[1].split("|")), _TABLE_RULE.sub("", text))
    text = text.translate(_CHARACTERS).translate(_BRACKETS).translate(_DROPPED)
    text = re.sub(r"'([A-Za-z])'", r"\1", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def _told_box(match: re.Match[str]) -> str:
    """A box, or several behind one another, as an answer; what stands in it twice is told once."""
    return f" 答案:{'、'.join(dict.fromkeys(match[1].split('、')))}。"
