"""Read the answer out of a free-form reply to a multiple-choice question.

Invariant: the result is what the reply states, never a guess. A reply that states no answer gives None, and one that
names several options gives all of them, also where one was asked for: the score then counts it as wrong.

A reply reasons first and answers last, so the evidence is ranked, and within a rank the last place counts:
1. statements: "答案是…", "故选…", "the answer is …", "X是正确答案", "不是A，而是C"
2. "…是C", "it is C": a letter after a copula
3. a line that is nothing but options ("C", "C. 血电解质"), or a reply that opens with one
4. judgements: one option called right (or, where the question asks for the wrong one, called wrong)
5. a concluding sentence ("综上…", "therefore …") that names one option
6. a reply that names one option at all
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from megatron_huatuo.evaluate.mentions import Mention, find_mentions, normalise

_NEGATIVE_QUESTION = re.compile(
    r"不正确|错误|不对|不属于|不包括|不包含|除外|不是|不宜|不应|不能|不会|不符|不可|不当|不需|无关|不恰当"
    r"|\b(?:not|except|incorrect|false|least|wrong)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[。!?\n;]|(?<=[a-z)\u3400-\u9fff])\.(?=\s|$)")
_NEGATED_BEFORE = re.compile(
    r"(?:不是|不选|不应选|不该选|不能选|不能是|不会是|不为|不应是|并非|而非|排除(?:了|掉)?|除了?|除外|既非|非"
    r"|\bnot|n't|rather than|instead of|except(?: for)?|excluding|exclude[ds]?|eliminate[ds]?|ruled? out|neither|nor)"
    r"\s?(?:be |choose |pick |select )?(?:the )?(?:答案|选项|选|option |answer |choice )?[:\s(]*$",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"\)?\s?(?:选?项)?(?:的?(?:说法|描述|叙述|表述))?\s?(?:是|均|都|也|为|则|显然)*"
    r"(?:错误|错的|错(?=[A-Z,。;\s]|$)|[×✗✘]|不正确|不对|不符|不选|不合|有误|可?(?:以|应)?(?:被)?排除|不成立|不是(?:答案|正确)|不恰当"
    r"|\s?(?:is|are|was)(?: also| clearly| therefore)? (?:wrong|incorrect|false|not|ruled|excluded|eliminated)|isn't|can be (?:excl|ruled|elim))",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\)?\s?(?:选?项)?(?:的?(?:说法|描述|叙述|表述))?\s?(?:是|均|都|也|为|则|才|显然)*"
    r"(?:正确|对的|对(?=[A-Z,。;!\s]|$)|[√✓✔]|\s?(?:is|are)(?: also| clearly| therefore)? (?:correct|right|true)\b)",
    re.IGNORECASE,
)

_IF = "(?<![不若如果误错别勿未可备待首入挑筛多单精人])"
_CUES = [
    # "答案是", "正确答案应该为", "答案：", "答案C"; not the heading "答案解析："
    r"答案(?!(?:及|与|和|的)?(?:解析|分析|详解|说明))[^。!?\n,;:答]{0,8}?(?:是|为|选择?|应当?|:)+",
    r"答案\)?[\s:]*(?=\(?[A-Z])",
    r"\(答案\)[\s:]*(?=@)",
    _IF + r"选(?!项|择题|手|自|出|用)(?:择|取|定)?了?(?:答案|选项|的是|的)?[:\s(]*(?=@)",
    r"(?:正确|最佳|最终)(?:的)?(?:选项|选择|项)(?:应该?|就)?(?:是|为|有|包括|:)+\s?(?:选项)?[\s(]*(?=@)",
    r"(?:符合(?:题意|要求|题干)|最佳|最合适|最恰当|最准确|最合理|最有可能|最可能|更可能)的?(?:选项|选择|项|一项|答案)?"
    r"(?:应该?|就)?(?:是|为|:)+\s?(?:选项)?[\s(]*(?=@)",
    r"(?:更正为?|改为|应改为|改选|修正为|修改为|纠正为)[:\s]*(?:选项|答案)?[:\s(]*(?=@)",
    r"\bcorrection:?\s?(?:option )?(?=@)",
    r"(?<!wrong )(?<!incorrect )\banswers?\b(?: (?:here|to this question|to the question|choice|option))?"
    r"(?: (?:is|are|would be|should be|must be|will be|has to be)\b|\s?[:=])+",
    r"\b(?:(?<!in)correct|right|best|final|appropriate|suitable|likely) (?:options?|choices?|selection)"
    r"(?: (?:is|are|would be|should be|must be)\b|\s?[:=])+",
    r"(?<!not )(?<!n't )(?<!to )(?<!if you )\b(?:choose|select|pick|go with|chose|opt for|choosing)"
    r"(?: (?:option|answer|choice|the))*[:\s(]*(?=@)",
    r"\bans\.?:?\s?(?=@)",
]
_CUE_RIGHT = r"(?<!不)正确的?(?:说法|描述|叙述|表述)?(?:应该?|就)?(?:是|为|有|包括|:)+[\s(]*(?=@)"
_CUE_WRONG = r"(?:不正确|错误|不对|不恰当|不属于|不包括)的?(?:说法|描述|叙述|表述|选项|一项|项)?(?:应该?|就)?(?:是|为|有|:)+[\s(]*(?=@)"
_IS_THE_ANSWER = re.compile(
    r"\)?\s?(?:选?项)?\s?(?:才|就|即|应该?|均|都|最)?(?:(?:是|为)(?:本题|该题|此题|最终|唯一)?的?"
    r"(?:正确|最佳|标准|合适|最合适|最恰当|最符合题意)?的?(?:答案|选择|选项)|符合(?:题意|题干|要求))"
    r"|\)?\s?(?:option )?(?:is|are|would be|must be)(?: therefore| thus| clearly)? (?:the|my)(?: most)?"
    r"(?: correct| right| best| appropriate| final| likely| suitable)* (?:answer|option|choice)",
    re.IGNORECASE,
)
_RATHER = re.compile(
    r"(?:而是|而应该?是|而应选|而选|应该?(?:是|选|为)|实际(?:上)?是|是|\bbut(?: rather)?|\bit is|it's)\s?(?:选|选项|option )?[:\s(]*$",
    re.IGNORECASE,
)
_COPULA = re.compile(r"(?:(?<!(?<!最)可能)是|为|\bis|\bbe|'s|选)\s?(?:选项|option |\()?\(?$", re.IGNORECASE)
_CONCLUSION = re.compile(
    r"因此|所以|故|综上|可见|总之|由此|\b(?:therefore|thus|hence|so|in conclusion|overall)\b", re.IGNORECASE
)
_NO_ANCHOR = re.compile(r"基于|根据|取决|在于|依据|无法|不确定|based on|depend|because|cannot|unclear", re.IGNORECASE)
_QUESTION_TAIL = re.compile(r"[^。!\n;,]{0,12}?(?:\?|吗|呢)")
_UNDECIDED = re.compile(r"\)?\s?,?\s?(?:或者?|还是|\bor\b|\beither\b)\s?(?:选项|选|option )?\s?\(?", re.IGNORECASE)
_LISTED = re.compile(
    r"[)\s]*(?:选?项)?\s?(?:[、,/&+;]\s?(?:和|与|以及|及|and\b)?|和|与|以?及|还有|\band\b|\s)\s?(?:选项|选|option )?[(\s]*"
)
_LABEL = re.compile(r" ?(?:[.、:),-]|,?即|也就是)? ?[(:]?")
_BULLET = re.compile(r"^ ?(?:[-•·>+]|#+|\d\d?[.)、](?= ?\(?[A-Z]\b)) ?", re.MULTILINE)
_LINE_LABEL = re.compile(r"(?:^|\n)\s*\(?([A-Z])[.、:)]")
_LETTER_ENDS = re.compile(r"[)\s]*(?:[.,。;:!、)\n]|$)")
_TEXT_ENDS = re.compile(r"[)\s]*(?:[。\n]|$)")
_LIST_GOES_ON = re.compile(r"\s*(?:选?项)?\s*(?:[、,;。.!?:)(\n]|$|和|与|及|或|以及|均|都|三|四|and\b|are\b)")
_OPTION_LINE = re.compile(r"\(?[A-Z](?:[.、:) ]\s?[^,。:]{0,60})?[)。;,]?")
_MAX_GAP = 30
_MAX_LINE = 80
_MAX_SENTENCE = 300


class Group(NamedTuple):
    """Mentions that form one list ("A、C和E", "C. 血电解质"). decided: no "or" joins them."""

    start: int
    end: int
    letters: str
    by_text: bool
    decided: bool


class _Reading(NamedTuple):
    text: str
    groups: list[Group]
    negative: bool
    multiple: bool


def parse_answer(reply: str, question: str, option: Mapping[str, str], *, multiple: bool = False) -> str | None:
    """Letters of the answer in alphabetical order ("C", "ACE"), or None when the reply gives no answer.

    reply: the model's text; what precedes `</think>` and what follows a next `<问>：` is not part of the answer.
    question: its wording tells whether the wrong option is asked for ("错误的是", "except").
    option: {letter: text}.
    multiple: several letters are expected; then lists over several lines and "以上都对" are read, too.
    Cost: linear in the reply's length.

    >>> parse_answer("腹水和清蛋白有意义，因此答案是血电解质。", "…", {"A": "腹水", "B": "清蛋白", "C": "血电解质"})
    'C'
    """
    text = _answer_part(reply, option)
    if text is None:
        return None
    mentions = find_mentions(text, option, multiple)
    reading = _Reading(text, list(_groups(text, mentions, option)), bool(_NEGATIVE_QUESTION.search(question)), multiple)
    for evidence in (_statement, _after_copula, _bare_line, _judgement, _conclusion, _only_one):
        if letters := evidence(reading):
            return letters
    return None


def _answer_part(reply: str, option: Mapping[str, str]) -> str | None:
    _, separator, tail = reply.rpartition("</think>")
    if not separator and "<think>" in reply:
        return None  # cut off while it was still thinking
    text = _BULLET.sub("", normalise(tail if separator else reply))
    text = text.split("<问>:")[0]
    text = re.sub(_listing(option), "\n", text)
    return _capital_letters(text.strip(), "".join(option))


def _listing(option: Mapping[str, str]) -> str:
    """Pattern of the echoed question's options: every one, in order, with its text."""
    filled = {letter: normalise(value) for letter, value in option.items() if value.strip()}
    return (
        r"\s*".join(rf"\(?{letter}[.、:) ]\s?{re.escape(value)}[,;。]?" for letter, value in filled.items()) or r"(?!)"
    )


def _capital_letters(text: str, letters: str) -> str:
    """Small letters as capital ones where they can only be an answer: after a cue, or as the whole reply."""
    small = f"[{letters.lower()}]"
    run = rf"{small}(?:(?:[、,和与/ ]|\band\b)*{small})*(?=\s*(?:[.。,;!)、]|$|项))"
    if re.fullmatch(r"\(?" + run + r"[\s.。)]*", text):
        return text.upper()
    cue = r"(答案(?:应该|应)?(?:是|为|选|:)*\s?\(?|选(?:择|项)?:?\s?\(?|\banswer(?: is)?:? ?\(?|\boption:? \(?)"
    return re.sub(cue + f"({run})", lambda match: match[1] + _upper(match[2]), text, flags=re.IGNORECASE)


def _upper(run: str) -> str:
    return " and ".join(part.upper() for part in re.split(r"\band\b", run))


def _groups(text: str, mentions: list[Mention], option: Mapping[str, str]) -> Iterator[Group]:
    index = 0
    while index < len(mentions):
        first = mentions[index]
        group = Group(first.start, first.end, first.letters, first.by_text, True)
        previous, index = first, index + 1
        while index < len(mentions) and (joined := _join(text, group, previous, mentions[index])):
            group, previous, index = joined, mentions[index], index + 1
        yield group


def _join(text: str, group: Group, previous: Mention, following: Mention) -> Group | None:
    """The group with one more mention, or None when the mention opens something new."""
    gap = text[previous.end : following.start]
    aside = re.sub(r"^\s?\([^()\n]*\)", "", gap)
    longer = group._replace(end=following.end)
    if _UNDECIDED.fullmatch(gap):
        return longer._replace(letters=_union(group.letters, following.letters), decided=False)
    is_label = _LABEL.fullmatch(gap) is not None and "\n" not in gap
    if is_label and following.by_text and not previous.by_text:
        return longer  # "C. 血电解质": the letter counts, whatever its text says
    if is_label and previous.by_text and not following.by_text and following.letters in group.letters:
        return longer  # "血电解质(C)"
    if is_label and previous.by_text and not following.by_text and gap.strip().startswith("("):
        return longer._replace(letters=following.letters)
    if not (_LISTED.fullmatch(gap) or (aside != gap and _LISTED.fullmatch(aside))):
        return None
    if gap.endswith("选") and (text[group.start - 1] != "选" or _is_put_aside(text, group)):
        return None
    if "\n" in gap and not _line_is_option(text, following):
        return None
    if re.search(r"[,;\s]", gap) and not re.search("[和与及]|and", gap) and _is_subject(text, following):
        return None
    return longer._replace(letters=_union(group.letters, following.letters))


def _union(letters: str, more: str) -> str:
    return "".join(sorted(set(letters) | set(more)))


def _line_is_option(text: str, mention: Mention) -> bool:
    """Whether the mention opens a line as a label ("C. 血电解质") and the line above is an option, too."""
    line = text[mention.start : mention.start + _MAX_LINE].split("\n", 1)[0]
    above = text[max(0, mention.start - _MAX_LINE) : mention.start].rstrip().rsplit("\n", 1)[-1]
    return all(_OPTION_LINE.fullmatch(part.strip()) for part in (line, above))


def _is_subject(text: str, mention: Mention) -> bool:
    """Whether a clause goes on after the mention ("…,A错误") instead of the list ending there."""
    return _LIST_GOES_ON.match(text, mention.end) is None


def _statement(reading: _Reading) -> str | None:
    """Evidence of rank 1; the last statement counts."""
    found = [(group.start, group) for group in _cued_groups(reading)]
    for index, group in enumerate(reading.groups):
        if _is_negated(reading, group):
            continue
        if _IS_THE_ANSWER.match(reading.text, group.end) or _corrects(reading, index):
            found.append((group.start, group))
    return max(found)[1].letters if found else None


def _cued_groups(reading: _Reading) -> Iterator[Group]:
    cues = [*_CUES, _CUE_WRONG if reading.negative else _CUE_RIGHT]
    starts = {group.start for group in reading.groups}
    for cue in cues:
        adjacent = cue.endswith("(?=@)")
        for match in re.finditer(cue.removesuffix("(?=@)"), reading.text, re.IGNORECASE):
            if adjacent and match.end() not in starts:
                continue
            if _cue_is_negated(reading.text, match.start()) and "不" not in match.group():
                continue
            if (group := _first_group(reading, match.end())) is not None:
                yield group


def _cue_is_negated(text: str, start: int) -> bool:
    before = text[max(0, start - 6) : start]
    return (
        re.search(r"(?:不|别|勿|没有|无法|未|难以)(?:应该?|能|宜|可以?|会|要|建议|考虑|该)?$|如果|若是?$|假如", before)
        is not None
    )


def _first_group(reading: _Reading, position: int) -> Group | None:
    """First group that a cue points at: in its sentence, near, not negated, not in a question."""
    text = reading.text
    while position < len(text) and text[position] in " \n:(":
        position += 1
    end = _SENTENCE_END.search(text, position, position + _MAX_SENTENCE)
    sentence_end = end.start() if end else position + _MAX_SENTENCE
    for index in range(bisect_left(reading.groups, (position,)), len(reading.groups)):
        group = reading.groups[index]
        gap = text[position : group.start]
        if group.start > sentence_end or len(gap) > _MAX_GAP or _NO_ANCHOR.search(gap):
            return None
        if _is_negated(reading, group):
            position = group.end
        else:
            return group if group.decided and not text.startswith("的", group.end) else None
    return None


def _is_negated(reading: _Reading, group: Group) -> bool:
    """Whether the reply does not stand by the group.

    "不选B", "排除B", "是B吗？", and "B错误" unless the wrong option is asked for.
    """
    if _is_put_aside(reading.text, group):
        return True
    if _QUESTION_TAIL.match(reading.text, group.end):
        return True
    return not reading.negative and _WRONG.match(reading.text, group.end) is not None


def _corrects(reading: _Reading, index: int) -> bool:
    """Whether group `index` replaces one that was put aside in the same sentence: "不是A，而是C"."""
    group = reading.groups[index]
    if index == 0 or not _RATHER.search(reading.text[max(0, group.start - 24) : group.start]):
        return False
    before = reading.groups[index - 1]
    same_sentence = not re.search(r"[。!\n]", reading.text[before.end : group.start])
    return same_sentence and _is_put_aside(reading.text, before)


def _is_put_aside(text: str, group: Group) -> bool:
    return _NEGATED_BEFORE.search(text[max(0, group.start - 32) : group.start]) is not None


def _after_copula(reading: _Reading) -> str | None:
    """Evidence of rank 2: "最可能的诊断是C。"; by letter only, since texts follow copulas in any reasoning."""
    for group in reversed(reading.groups):
        if group.by_text or not group.decided or _is_negated(reading, group):
            continue
        if _LETTER_ENDS.match(reading.text, group.end) and _COPULA.search(
            reading.text[max(0, group.start - 12) : group.start]
        ):
            return group.letters
    return None


def _bare_line(reading: _Reading) -> str | None:
    """Evidence of rank 3: the last line, else the opening of the reply, is nothing but options."""
    if not reading.groups:
        return None
    text, first, last = reading.text, reading.groups[0], reading.groups[-1]
    labels = {match[1] for match in _LINE_LABEL.finditer(text)}
    line_start = text.rfind("\n", 0, last.start) + 1
    alone = not text[line_start : last.start].strip(" (") and not text[last.end :].strip(" ).。!\n;,")
    if alone and last.decided and labels <= set(last.letters):
        return last.letters
    opens = not text[: first.start].strip(" (") and first.decided and labels <= set(first.letters)
    ends = (_TEXT_ENDS if first.by_text else _LETTER_ENDS).match(text, first.end)
    return first.letters if opens and ends and not _is_negated(reading, first) else None


def _judgement(reading: _Reading) -> str | None:
    """Evidence of rank 4: what the reply calls right, or wrong where the question asks for the wrong one."""
    wanted = _WRONG if reading.negative else _RIGHT
    letters = ""
    for group in reading.groups:
        pushed_aside = not reading.negative and _is_negated(reading, group)
        if not pushed_aside and wanted.match(reading.text, group.end):
            letters = _union(letters, group.letters)
    return letters if reading.multiple or len(letters) == 1 else None


def _conclusion(reading: _Reading) -> str | None:
    """Evidence of rank 5: one option in a last sentence that concludes."""
    text = reading.text.rstrip(" 。.!\n")
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    last = ends[-1] if ends else 0
    cue = _CONCLUSION.search(text, last)
    if not cue:
        return None
    return _one_of(reading, [group for group in reading.groups if group.start >= cue.start()])


def _only_one(reading: _Reading) -> str | None:
    """Evidence of rank 6: one option in the whole reply, or one list of them where several are asked for."""
    return _one_of(reading, reading.groups)


def _one_of(reading: _Reading, groups: list[Group]) -> str | None:
    if any(not group.decided for group in groups):
        return None
    letters = {group.letters for group in groups if not _is_negated(reading, group)}
    if len(letters) != 1:
        return None
    only = letters.pop()
    return only if len(only) == 1 or reading.multiple else None
