"""Read the answer out of a free-form reply to a multiple-choice question.

Invariant: the result is what the reply states, never a guess. A reply that states no answer gives None, and one that
names several options gives all of them, also where one was asked for: the score then counts it as wrong.

A reply reasons first and answers last, so the evidence is ranked, and within a rank the last place counts:
1. statements: "答案是…", "故选…", "the answer is …", "X是正确答案", "不是A，而是C"
2. "…是C", "it is C": a letter after a copula
3. "除B外都对", "all except B", "B不是，其余都是", "只有D无关"
4. a verdict on every option, or on all but one
5. a line that is nothing but options ("C", "C. 血电解质"), or a reply that opens with one
6. one option called right (or, where the question asks for the wrong one, called wrong); all others put aside
7. a last sentence that ends with "…是" and an option's text, or that concludes ("综上…", "therefore …") and names one option
8. a reply that names one option at all, by its text or in its only sentence
9. the one option whose clause repeats the question's own words, where other options have clauses of their own
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from megatron_huatuo.evaluate.answer_parser.judgements import (
    NEGATION,
    Reading,
    by_echo,
    by_elimination,
    by_exception,
    by_some_verdicts,
    by_verdicts,
    verdict_on,
)
from megatron_huatuo.evaluate.answer_parser.mentions import Group, find_mentions, group_mentions, is_put_aside, union
from megatron_huatuo.evaluate.answer_parser.shell import normalise, spoken_part
from megatron_huatuo.evaluate.answer_parser.wording import (
    BETTER,
    BUT,
    CONCLUSION,
    COPULA,
    CUE_RIGHT,
    CUE_WRONG,
    CUES,
    IS_THE_ANSWER,
    NEGATIVE_QUESTION,
    NO_ANCHOR,
    NOT_ANOTHER,
    QUESTION_TAIL,
    RATHER,
    SENTENCE_END,
    WRONG,
)

_BULLET = re.compile(r"^ ?(?:[-•·>+]|#+|\d\d?[.)、](?= ?\(?[A-Z]\b)) ?", re.MULTILINE)
# Base models go on with a question of their own.
_NEXT_QUESTION = re.compile(r"\n\s*(?:Question|Q|问题|题目)\s?\d{0,3}\s?:", re.IGNORECASE)
# A line of letters with other signs between them than a list has: "A.C.D", "答案:A。C。", "A|C", "A-C-D".
_PARTED_LETTERS = re.compile(
    r"^((?:[^\n]{0,40}(?:答案|选|[Aa]nswers?)[^\nA-Z]{0,8})?)(\(?[A-Z]\)?(?: ?[.。·|\\] ?\(?[A-Z]\)?)+|[A-Z](?:-[A-Z]){2,})[.。]?$",
    re.MULTILINE,
)
_EXPLAINED = re.compile(r"[A-Z][.、:)] ?[^\s]")
_CLAUSE_LABEL = re.compile(r"(?:^|[\n。;,])\s*\(?([A-Z])(?:[.:)]|、(?! ?[A-Z]))")
_AFTER_SENTENCE = re.compile(r"[。!?;.]\s?\(?$")
_LETTERS_ONLY = re.compile(r"[A-Z、,/和与及 ]+")
_LETTER_ENDS = re.compile(r"[)\s]*(?:[.,。;:!、(\n]|$)")
_TEXT_ENDS = re.compile(r"[)\s]*(?:[。\n]|\.(?=\s)|$)")
_DECIDES = re.compile(r"(?:yes|no|maybe)[,;:]", re.IGNORECASE)  # opens a reply as a whole answer, whatever follows
_SECONDARY = re.compile(r"其次|另外|也|还|或|可能是$")
_EITHER = re.compile(r"(?:都|均)(?:可以?|行|有可能)")
_COLON_BEFORE = re.compile(r": ?(?:choice |option |选项)?\(?$", re.IGNORECASE)
_MAX_GAP = 30
_MAX_BARE = 16
_MAX_SENTENCE = 300
_QUESTION_END = 60


def parse_answer(reply: str, question: str, option: Mapping[str, str], *, multiple: bool = False) -> str | None:
    """Letters of the answer in alphabetical order ("C", "ACE"), or None when the reply gives no answer.

    reply: the model's text; its thoughts, and what follows a next `<问>：`, are not part of the answer; nor is a question that it goes on with.
    question: its wording tells whether the wrong option is asked for ("错误的是", "except").
    option: {letter: text}.
    multiple: several letters are expected; then lists over several lines and "以上都对" are read, too.
    Cost: linear in the reply's length.

    >>> parse_answer("腹水和清蛋白有意义，因此答案是血电解质。", "…", {"A": "腹水", "B": "清蛋白", "C": "血电解质"})
    'C'
    """
    text = _answer_part(reply, option, multiple)
    if text is None:
        return None
    negative = asks_for_wrong(question)
    if (next_one := _NEXT_QUESTION.search(text)) is not None:
        before = _read(text[: next_one.start()], option, negative, multiple)
        if letters := _statement(before) or _bare_line(before):
            return letters
    reading = _read(text, option, negative, multiple)
    for evidence in _EVIDENCE:
        if letters := evidence(reading):
            return letters
    return by_echo(reading, question)


def _read(text: str, option: Mapping[str, str], negative: bool, multiple: bool) -> Reading:
    groups = list(group_mentions(text, find_mentions(text, option, multiple)))
    return Reading(text, groups, negative, multiple, option)


def asks_for_wrong(question: str) -> bool:
    """Whether a question asks for the option that is wrong, by the wording of its end."""
    return NEGATIVE_QUESTION.search(question[-_QUESTION_END:]) is not None


def _answer_part(reply: str, option: Mapping[str, str], multiple: bool) -> str | None:
    spoken = spoken_part(reply)
    if spoken is None:
        return None
    text = _BULLET.sub("", normalise(spoken))
    text = text.split("<问>:")[0]
    text = re.sub(_listing(option), "\n", text)
    if multiple:
        text = _PARTED_LETTERS.sub(lambda line: line[1] + "、".join(re.findall("[A-Z]", line[2])), text)
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
    return re.sub(r"\b[a-z]\b|^[a-z]+$", lambda match: match[0].upper(), run)


def _statement(reading: Reading) -> str | None:
    """Evidence of rank 1; the last statement counts."""
    found = [(group.start, group) for group in _cued_groups(reading)]
    for index, group in enumerate(reading.groups):
        if _is_negated(reading, group):
            continue
        is_preferred = BUT.search(reading.text[max(0, group.start - 16) : group.start]) and BETTER.match(
            reading.text, group.end
        )
        if IS_THE_ANSWER.match(reading.text, group.end) or is_preferred or _corrects(reading, index):
            found.append((group.start, group))
    return _with_lines_below(reading, max(found)[1]) if found else None


def _with_lines_below(reading: Reading, group: Group) -> str:
    """The letters of a statement; where it begins a list that explains each option, a line each, those of the list."""
    letters, text = group.letters, reading.text
    if not reading.multiple or not _starts_explained_line(text, group):
        return letters
    for index in range(bisect_left(reading.groups, (group.end,)), len(reading.groups)):
        following = reading.groups[index]
        between = text[group.end : following.start]
        if len(between) > _MAX_SENTENCE:
            break
        if "\n" not in between.rstrip("( "):
            continue
        if (
            not _starts_explained_line(text, following)
            or re.search(r"\n\s*\S", between)
            or following.letters <= group.letters
        ):
            break
        if verdict_on(reading, following) is not reading.negative and not _is_negated(reading, following):
            letters = union(letters, following.letters)
        group = following
    return letters


def _starts_explained_line(text: str, group: Group) -> bool:
    return (
        re.search(r"\n[( ]{0,2}$", text[max(0, group.start - 3) : group.start]) is not None
        and _EXPLAINED.match(text, group.start) is not None
    )


def _cued_groups(reading: Reading) -> Iterator[Group]:
    cues = [*CUES, CUE_WRONG if reading.negative else CUE_RIGHT]
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


def _first_group(reading: Reading, position: int) -> Group | None:
    """First group that a cue points at: in its sentence, near, not negated, not in a question."""
    text = reading.text
    while position < len(text) and text[position] in " \n:(":
        position += 1
    end = SENTENCE_END.search(text, position, position + _MAX_SENTENCE)
    sentence_end = end.start() if end else position + _MAX_SENTENCE
    for index in range(bisect_left(reading.groups, (position,)), len(reading.groups)):
        group = reading.groups[index]
        gap = text[position : group.start]
        if group.start > sentence_end or len(gap) > _MAX_GAP or NO_ANCHOR.search(gap):
            return None
        if _is_negated(reading, group):
            position = group.end
        else:
            either = not reading.multiple and len(group.letters) > 1 and _EITHER.match(text, group.end)
            return group if group.decided and not either and not text.startswith("的", group.end) else None
    return None


def _is_negated(reading: Reading, group: Group) -> bool:
    """Whether the reply does not stand by the group.

    "不选B", "排除B", "是B吗？", and "B错误" unless the wrong option is asked for.
    """
    if is_put_aside(reading.text, group):
        return True
    if QUESTION_TAIL.match(reading.text, group.end):
        return True
    return not reading.negative and WRONG.match(reading.text, group.end) is not None


def _corrects(reading: Reading, index: int) -> bool:
    """Whether group `index` replaces one that was put aside in the same sentence: "不是A，而是C"."""
    group = reading.groups[index]
    if index == 0 or not RATHER.search(reading.text[max(0, group.start - 24) : group.start]):
        return False
    before = reading.groups[index - 1]
    same_sentence = not re.search(r"[。!\n]", reading.text[before.end : group.start])
    return same_sentence and is_put_aside(reading.text, before)


def _after_copula(reading: Reading) -> str | None:
    """Evidence of rank 2: "最可能的诊断是C。"; by letter only, since texts follow copulas in any reasoning."""
    for group in reversed(reading.groups):
        if group.by_text or not group.decided or _is_negated(reading, group):
            continue
        is_last = not reading.text[group.end :].strip(" ).。!\n") and _LETTERS_ONLY.fullmatch(reading.text, *group[:2])
        if (
            not reading.multiple
            and is_last
            and _COLON_BEFORE.search(reading.text, max(0, group.start - 12), group.start)
        ):
            return group.letters  # "Levothyroxine is what she needs: B."
        is_label = reading.text.startswith("\n", group.start - 1) and reading.text.startswith((":", "."), group.end)
        if is_label:
            continue  # "A: 是", and B on the next line
        if _LETTER_ENDS.match(reading.text, group.end) and COPULA.search(
            reading.text[max(0, group.start - 12) : group.start]
        ):
            return group.letters
    return None


def _bare_line(reading: Reading) -> str | None:
    """Evidence of rank 5: the last line, else the opening of the reply, is nothing but options."""
    if not reading.groups:
        return None
    text, first, last = reading.text, reading.groups[0], reading.groups[-1]
    labels = {match[1] for match in _CLAUSE_LABEL.finditer(text)}
    line_start = text.rfind("\n", 0, last.start) + 1
    if _AFTER_SENTENCE.search(text, max(0, last.start - 4), last.start) and _LETTERS_ONLY.fullmatch(text, *last[:2]):
        line_start = last.start  # "… B acts slowly. C."
    rest = text[last.end :].strip(" )\n")
    if last.decided and not text[line_start : last.start].strip(" (") and not rest.strip(".。!;,"):
        is_enumeration = not labels <= set(last.letters)
        bare_letters = _LETTERS_ONLY.fullmatch(text, last.start, last.end) and rest in ("", "。", "!")
        if bare_letters or not is_enumeration:
            return last.letters
    opens = not text[: first.start].strip(" (") and first.decided and labels <= set(first.letters)
    ends = (_TEXT_ENDS if first.by_text else _LETTER_ENDS).match(text, first.end) or _DECIDES.match(text, first.start)
    return first.letters if opens and ends and not _is_negated(reading, first) else None


def _final_text(reading: Reading) -> str | None:
    """Evidence of rank 7: the last clause or sentence, or the first one, ends with "…是" and its only option."""
    clauses, sentences = (list(re.finditer(pattern, reading.text)) for pattern in (r"[^。!?\n;,]+", r"[^。!?\n;]+"))
    for span in [*clauses[-1:], *sentences[-1:], *sentences[:1]]:
        inside = [group for group in reading.groups if span.start() <= group.start < span.end()]
        standing = [g for g in inside if not _is_negated(reading, g) and verdict_on(reading, g) is not False]
        if (
            len({group.letters for group in standing}) != 1
            or not standing[0].decided
            or (len(standing[0].letters) > 1 and not reading.multiple)
        ):
            continue
        before = reading.text[max(span.start(), standing[0].start - 12) : standing[0].start]
        after = reading.text[standing[0].end : span.end()].strip(" ).,")
        if COPULA.search(before) and not _SECONDARY.search(before) and (not after or NOT_ANOTHER.match(after)):
            return standing[0].letters
    return None


def _named_in_part(reading: Reading) -> str | None:
    """Evidence of rank 8: the whole reply is the beginning of one option's text ("Protamine")."""
    reply = reading.text.strip(" .。!").lower()
    if len(reply) < (2 if reply[:1] > "\u3400" else 5):
        return None
    found = [letter for letter, text in reading.option.items() if normalise(text).lower().startswith(reply)]
    return found[0] if len(found) == 1 else None


def _conclusion(reading: Reading) -> str | None:
    """Evidence of rank 7: one option in a last sentence that concludes."""
    text = reading.text.rstrip(" 。.!\n")
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    last = ends[-1] if ends else 0
    cue = CONCLUSION.search(text, last)
    if not cue:
        return None
    return _one_of(reading, [group for group in reading.groups if group.start >= cue.start()])


def _only_one(reading: Reading) -> str | None:
    """Evidence of rank 8: one option in the whole reply, or one list of them where several are asked for."""
    end = SENTENCE_END.search(reading.text)
    if end and end.end() < len(reading.text) and not all(group.by_text for group in reading.groups):
        return None  # letters in passing: "B is for heparin. …"
    if reading.negative and len(reading.text) > _MAX_BARE and not NEGATION.search(reading.text):
        return None  # "发热、咳嗽均可出现" names what does occur
    return _one_of(reading, reading.groups)


def _one_of(reading: Reading, groups: list[Group]) -> str | None:
    if any(not group.decided for group in groups):
        return None
    letters = {group.letters for group in groups if not _is_negated(reading, group)}
    if len(letters) != 1:
        return None
    only = letters.pop()
    return only if len(only) == 1 or reading.multiple else None


_EVIDENCE = (
    _statement,
    _after_copula,
    by_exception,
    by_verdicts,
    _bare_line,
    by_some_verdicts,
    by_elimination,
    _final_text,
    _conclusion,
    _only_one,
    _named_in_part,
)
