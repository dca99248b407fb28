"""Answers that a reply gives by judging options: verdict lists, what is left over, "all except B", "only A", an echo of the stem.

Invariant: an option is taken from judgements only when they leave no other: every option has its verdict, or all others are
put aside. In a question that asks for the wrong option, right and wrong change their places.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from megatron_huatuo.evaluate.answer_parser.mentions import Group, is_put_aside, union
from megatron_huatuo.evaluate.answer_parser.shell import normalise

_MAX_SEGMENT = 240
_MAX_PHRASES = 20
_MAX_ECHOED = 200  # a reply that names options more often runs in circles
_LEAD = (
    r"[\s)]*(?:\([^()\n]{0,24}\)\s?)?(?:[两二三四五六]项|选?项)?[\s:.(-]*(?:的?(?:说法|描述|叙述|表述))?[\s:]*"
    r"(?:是|为|均|都|也|则|全部?|皆|显然|才|就)*"
)
_NO = (
    r"(?:错误|错的|错(?=[A-Z,。;)\s]|$)|有误|×|不正确|不对|不符|不选|不合|不宜|不当|不成立|不能|不属于|不包括|不典型|不适[合用]|不相关|不是|否(?=[,。;)\s]|$)"
    r"|可?(?:以|应)?(?:被)?排除|除外|incorrect\b|wrong\b|false\b|no\b(?=\s*(?:[.,;!)\n]|$))|not\b|isn't\b|does(?: not|n't)\b|ruled out\b"
    r"|(?:is|are|was|were)(?: also| clearly| therefore)? (?:not|wrong|incorrect|false|ruled out|excluded|eliminated|inappropriate)\b)"
)
_YES = (
    r"(?:正确|对的|对(?=[A-Z,。;!)\s]|$)|√|符合|成立|首选|是(?=[,。;)\n]|$)|属于(?=[,。;)\n]|$)|可选|应选|没有(?:问题|错)|无误"
    r"|correct\b|right\b|true\b|yes\b|(?:is|are)(?: also| clearly| therefore)? (?:correct|right|true)\b)"
)
_TOGETHER = r"(?:(?:均|都|全|皆)(?:为|是|属于|会|可以?|能|有)|(?:are|were) all\b|all (?:are|of them are)\b|都$)"
_STARTS_NO, _STARTS_YES = re.compile(_LEAD + _NO, re.IGNORECASE), re.compile(_LEAD + _YES, re.IGNORECASE)
_STARTS_TOGETHER = re.compile(r"[\s)]*(?:选?项)?[一二两三四五]?[者项]?" + _TOGETHER, re.IGNORECASE)
_CLAUSE = r"(?:^|[,:;(?.\s-])(?:所以|因此|故|其实|实际上|却|说法|描述|表述|该项|此项|选项|[A-Z]项?)*(?:是|为|均|都|也)*"
_TAIL = r"(?:的|说法|选项|答案)*[\s。.!;,)]*$"
_ENDS_NO, _ENDS_YES = (
    re.compile(_CLAUSE + _NO + _TAIL, re.IGNORECASE),
    re.compile(_CLAUSE + _YES + _TAIL, re.IGNORECASE),
)
_ASKED = re.compile(r"[^\n。.,;?]{0,8}\?\s*(?P<no>不对|不是|不|错|no\b)?(?P<yes>对|是|yes\b)?", re.IGNORECASE)
_NEXT_IS_NOT = re.compile(r",?\s?(?:而?不是|并非|而非|排除|\bnot)\s?$", re.IGNORECASE)
_MARK_BEFORE = re.compile(r"(?:^|[\n ,;。])([√×]) ?(?:选项|option )?\(?$", re.IGNORECASE)
_APPROVED_BEFORE = re.compile(r"(?:(?<!不)正确|(?<!不)属于)[^。,;\n]{0,8}?(?:有|是|为|包括)[:\s(]*$|(?<!不)包括:?$")
_ALL_OF_THESE = re.compile(r"(?:[二两三四五六]者|它们)(?:均|都)(?:为|是|属于|可)")
_UNSURE = re.compile(r"可能|也许|或|不确定|无法|\bmay\b|\bmight\b|\bcould\b|\bperhaps\b", re.IGNORECASE)
_FAINT = re.compile(r"意义不?[小大]|较少|较低")
_COMMON = frozenset(
    [
        "患者",
        "下列",
        "关于",
        "药物",
        "可能",
        "属于",
        "正确",
        "说法",
        "选项",
        "引起",
        "主要",
        "常见",
        "最常",
        "应该",
        "选用",
        "使用",
        "which",
        "followi",
        "patien",
        "likely",
    ]
)

_REST = r"(?:其余|其他|其它|余下|剩下|剩余|the rest\b|the others\b|all (?:the )?others?\b|everything else\b|the remaining\b)"
_REST_ARE = re.compile(
    _REST
    + r"[^。.\n,;A-Z]{0,12}?(?P<no>不|没|无|not\b|n't)?[^。.\n,;A-Z]{0,4}(?:是|为|对|选|可|正确|属于|符合|are\b|is\b|apply)",
    re.IGNORECASE,
)
_EXCEPT_BEFORE = re.compile(
    r"(?:除了?|\b(?:all|everything|any|each|every(?: option)?)(?: of (?:them|these|the above))?(?: options?)? (?:except(?: for)?|but|other than|excluding))"
    r"\s?(?:选项|options? )?\(?$",
    re.IGNORECASE,
)
_EXCEPT_AFTER = re.compile(
    r"[\s)]*(?:选?项)?(?:[两三四]项)?\s?(?:(?:以|之)?外)?\s?,?\s?(?:"
    + _REST
    + r")?[^。.\n,;]{0,10}?(?:均|都|全|皆|是|可)(?P<predicate>[^。.\n]{0,16})",
    re.IGNORECASE,
)
_ONLY_BEFORE = re.compile(r"(?:只有|唯有|唯一|仅有?|\bonly)\s?(?:选项|option )?\(?$", re.IGNORECASE)
_NOT_CHOSEN = re.compile(r"(?:均|都|全)不(?:选|入选|考虑)")
_NONE_OF_THESE = re.compile(
    r"[,;。](?:因此|所以|故)?(?:均|都)不(?:是|对|符|选|正确|属于)|(?:这|以上|上述)[一二三四五六七两几]?(?:者|种|味|个|项|类)?(?:药物?|选项|药材)?(?:均|都|全)?(?:不(?:是|符|选|对|正确|属于|合)|可?排除)"
)
NEGATION = re.compile(r"不|无|没|非|错|\bnot\b|n't|\bno\b", re.IGNORECASE)
_ALL_ABOVE = re.compile(r"以上|上述|\ball of (?:the )?above\b|\ball of (?:them|these)\b", re.IGNORECASE)
_NONE_ABOVE = re.compile(r"不|非|无|\bnone\b|\bnot\b", re.IGNORECASE)
_SENTENCES = re.compile(r"(?:(?!,? ?(?:whereas|while|而))[^。!?\n;])+")
_CLAUSES = re.compile(r"[^。!?\n;,]+")


class Reading(NamedTuple):
    """A reply in its normalised form. negative: the question asks for what is wrong. option: {letter: text}."""

    text: str
    groups: list[Group]
    negative: bool
    multiple: bool
    option: Mapping[str, str]

    @property
    def letters(self) -> str:
        """All letters of the question."""
        return "".join(self.option)

    def without(self, letters: str) -> str:
        """The other letters."""
        return "".join(letter for letter in self.option if letter not in letters)


def by_exception(reading: Reading) -> str | None:
    """ "除B、E外均正确", "B、E不是，其他都是", "all except B", "只有D无关": the named options, or the others."""
    for group in reversed(reading.groups):
        before, after = reading.text[max(0, group.start - 40) : group.start], reading.text[group.end : group.end + 60]
        if _EXCEPT_BEFORE.search(before) and (
            match := _EXCEPT_AFTER.match(after) or re.match(r"(?P<predicate>)", after)
        ):
            is_rest = not NEGATION.search(match["predicate"])
            if reading.multiple and is_rest and not reading.negative:
                return _sound(reading, reading.without(group.letters))
            if not reading.multiple and reading.negative == is_rest:
                return _sound(reading, group.letters)
        if _ONLY_BEFORE.search(before):
            is_negated = NEGATION.search(re.split(r"[。.,;!?\n]", after, maxsplit=1)[0]) is not None
            if reading.negative == is_negated:
                return _sound(reading, group.letters)
            if reading.multiple and is_negated:
                return _sound(reading, reading.without(group.letters))
    return _the_rest(reading) if reading.multiple and not reading.negative else None


def _the_rest(reading: Reading) -> str | None:
    for match in [*_REST_ARE.finditer(reading.text), *_NOT_CHOSEN.finditer(reading.text)][-_MAX_PHRASES:]:
        named = _named_before(reading, match.start())
        if named and not match.groupdict().get("no") and (rest := reading.without(named)):
            return rest
    if (together := _ALL_OF_THESE.search(reading.text)) and (named := _named_before(reading, together.start())):
        return named
    if any(
        group.letters == reading.letters and reading.text[group.end : group.end + 1] in "中里"
        for group in reading.groups
    ):
        _, wrong = collect_verdicts(reading)
        return reading.without(wrong) if wrong else None
    return None


def _named_before(reading: Reading, position: int) -> str:
    """Letters named in the sentence that leads up to a position."""
    start = max(reading.text.rfind(end, 0, position) for end in "。\n") + 1
    return "".join(sorted({k for group in reading.groups if start <= group.start < position for k in group.letters}))


def by_verdicts(reading: Reading) -> str | None:
    """A verdict on every option, or on all but one: "A正确。B错误。…", "✅ A", "A. … - incorrect", table rows."""
    right, wrong = collect_verdicts(reading)
    wanted, unwanted = (wrong, right) if reading.negative else (right, wrong)
    wanted, others = "".join(w for w in wanted if w not in unwanted), reading.without(union(wanted, unwanted))
    if above := _all_of_the_above(reading):
        rest = reading.without(above)
        together = [
            g
            for g in reading.groups
            if _STARTS_TOGETHER.match(reading.text, g.end) and not is_put_aside(reading.text, g)
        ]
        if set(wanted) >= set(rest) or any(set(group.letters) >= set(rest) for group in together):
            return above
    if not others and wanted and (reading.multiple or len(wanted) == 1):
        return wanted
    if not reading.multiple and not wanted and len(others) == 1:
        return others
    return None


def by_some_verdicts(reading: Reading) -> str | None:
    """What a reply calls right, or wrong where the question asks for that, without a word on every option."""
    right, wrong = collect_verdicts(reading)
    wanted, unwanted = (wrong, right) if reading.negative else (right, wrong)
    wanted = "".join(letter for letter in wanted if letter not in unwanted)
    return wanted if wanted and (reading.multiple or len(wanted) == 1) else None


def by_elimination(reading: Reading) -> str | None:
    """All options but one put aside, or, where the wrong one is asked for, all but one approved."""
    if reading.multiple:
        return None
    aside = ""
    for group in reading.groups:
        before = reading.text[max(0, group.start - 24) : group.start]
        if (
            reading.negative and (_STARTS_TOGETHER.match(reading.text, group.end) or _APPROVED_BEFORE.search(before))
        ) or (not reading.negative and (is_put_aside(reading.text, group) or verdict_on(reading, group) is False)):
            aside = union(aside, group.letters)
    if not reading.negative and (match := _NONE_OF_THESE.search(reading.text)):
        for group in reading.groups:
            if group.end <= match.start():
                aside = union(aside, group.letters)
    others = reading.without(aside)
    return others if len(others) == 1 and len(reading.letters) > 2 else None


def collect_verdicts(reading: Reading) -> tuple[str, str]:
    """(letters called right, letters called wrong), the last verdict on each letter counting."""
    verdicts: dict[str, bool] = {}
    for group in reading.groups:
        if not group.decided or (verdict := verdict_on(reading, group)) is None:
            continue
        for letter in group.letters:
            verdicts[letter] = verdict
    right, wrong = ("".join(sorted(k for k, v in verdicts.items() if v is value)) for value in (True, False))
    return right, wrong


def verdict_on(reading: Reading, group: Group) -> bool | None:
    """What the words after a group, up to the next one, or a mark before it, say of it: right, wrong, or nothing."""
    text = reading.text
    end = group.end + _MAX_SEGMENT
    following = bisect_left(reading.groups, (group.end,))
    if following < len(reading.groups):
        end = min(end, reading.groups[following].start)
    if (line_end := text.find("\n", group.end, end)) >= 0:
        end = line_end
    segment = _NEXT_IS_NOT.sub("", text[group.end : end])
    if not re.match(r"[\s:.)-]*[√×]", segment) and (
        mark := _MARK_BEFORE.search(text, max(0, group.start - 12), group.start)
    ):
        return mark[1] == "√"
    if asked := _ASKED.match(segment):
        return False if asked["no"] else True if asked["yes"] else None
    if is_put_aside(text, group):
        return False
    if _STARTS_NO.match(segment) or _STARTS_YES.match(segment):
        return not _STARTS_NO.match(segment)
    if (reading.multiple or reading.negative) and _STARTS_TOGETHER.match(segment):
        return True
    for part in dict.fromkeys((segment, re.split(r"[。;!]|\.(?=\s)", segment, maxsplit=1)[0])):
        if _ENDS_NO.search(part) or _ENDS_YES.search(part):
            return not _ENDS_NO.search(part)
    return None


def _all_of_the_above(reading: Reading) -> str | None:
    """The letter of an option that stands for all others."""
    if reading.multiple:
        return None
    found = [k for k, v in reading.option.items() if _ALL_ABOVE.search(v) and not _NONE_ABOVE.search(v) and len(v) < 24]
    return found[0] if len(found) == 1 else None


def _sound(reading: Reading, letters: str) -> str | None:
    return letters if letters and (reading.multiple or len(letters) == 1) else None


def by_echo(reading: Reading, question: str) -> str | None:
    """The options whose clause, and no other clause with options, repeats words of the question: "C缺乏引起坏血病"."""
    if reading.negative or len(reading.groups) > _MAX_ECHOED:
        return None
    stem = set(_pieces(normalise(question))) - _COMMON
    echoes: list[tuple[str, set[str]]] = []
    for match in (_SENTENCES if reading.multiple else _CLAUSES).finditer(reading.text):
        inside = [group for group in reading.groups if match.start() <= group.start < match.end()]
        letters = "".join(sorted({letter for group in inside for letter in group.letters}))
        if not letters:
            continue
        if _UNSURE.search(match.group()) or any(not group.decided for group in inside):
            return None
        if len(letters) > 1 and not reading.multiple:
            return None
        weak = NEGATION.search(match.group()) or _FAINT.search(match.group())
        echoes.append((letters, set() if weak else stem & set(_pieces(match.group()))))
    if len({letters for letters, _ in echoes}) < 2:
        return None
    distinct = {
        letters
        for letters, pieces in echoes
        if pieces - set().union(*(other for name, other in echoes if name != letters))
    }
    return distinct.pop() if len(distinct) == 1 else None


def _pieces(text: str) -> Iterator[str]:
    """What may be repeated: pairs of Han characters, and English words of five letters or more without their ending."""
    for run in re.findall("[\u3400-\u9fff]+", text):
        yield from (run[index : index + 2] for index in range(len(run) - 1))
    yield from (
        word.lower()[:6] for word in re.findall(r"[A-Za-z]{5,}", text) if not word.endswith(("ed", "ing", "ly"))
    )
