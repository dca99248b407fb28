"""Where a reply names options, by letter ("选项C") or by text, and which of them form one list ("A、C和E").

Invariant: positions refer to the normalised reply of `normalise`, and mentions never overlap. Where texts contain one
another the longest one counts, and a text counts before the letters inside it ("B超检查" is no "B"). Groups follow one
another; what a group leaves open ("A或C") is marked as undecided.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from megatron_huatuo.evaluate.answer_parser.shell import normalise

# Letters stand alone, or touch only these characters: "选C", "C项", but not "维生素C" or "C反应蛋白".
_MAY_PRECEDE = "选择项是为案和与及或即而非除了故属应到至定于取对错上中有只看下此以则但剩虑测用把将让论由以加合考出"
_MAY_FOLLOW = "选项和与及或是为正错不均都也对符而吧了呢吗至到最才就两三四五等有可应属中合的说描所会没因这以啦呀哦更用外虽常很仅只无未并需能较最同除全也"
_NAME_BEFORE = re.compile(
    r"\b(?:vitamins?|hepatitis|type|group|grade|class|stage|influenza|protein|factor|immunoglobulin) $", re.IGNORECASE
)
_NAME_BEFORE_ZH = re.compile(r"[素型级组期类肝群酶] $")
# "E. coli", "C. difficile": a capital, a dot and a small word are a name, unless the word goes on with a sentence.
_SPECIES_AFTER = re.compile(
    r"\. ?(?!(?:because|since|the|this|that|it|so|as|which|is|therefore|and|but|not|all|for|in)\b)[a-z]{3,}"
)
_SPECIES = re.compile(r"([A-Z])[a-z]+ ([a-z]{3,})\b")
_LABEL_AFTER = re.compile(r"[.、:)]")
# An English word after a letter makes it an article or a name ("A 35-year-old", "B cells"), unless it is one of these.
_WORD_AFTER = re.compile(
    r"\s+(?!(?:and|or|is|are|was|because|as|since|but|not|would|should|seems?|has|fits|matches|it is)\b)[a-z0-9]"
)
_ALL_OF_THEM = re.compile(
    r"以上(?:选项|各项|答案|四项|五项)?(?:都|均|全|皆)(?:是|对|正确|选)|全选|(?:全部|所有)(?:选项)?(?:都|均)?(?:正确|都选|入选)"
    r"|\ball of the above\b|\ball (?:the |of the )?options are (?:correct|right)\b",
    re.IGNORECASE,
)
_LIST_ENDS = re.compile(r"\s*(?:[,、;。.!?:)(\n]|$|项|选项|均|都|[两三四五]|are\b|all\b|as\b)")
_LAST_CLAUSE = re.compile(r"(?:[,;] ?(?:选项|option )?|(?<=\w) )([A-Z]项?(?: ?(?:和|与|及|、|and) ?[A-Z]项?)*)$")
_TO = r"(?: ?(?:[~至到]|-{1,2}) ?| (?:through|thru|to) )"
_RANGE = re.compile(rf"\w{_TO}\w")
_MAX_RUN = 200


class Mention(NamedTuple):
    """Option letters named at text[start:end]; `by_text` when the option's text is what stands there."""

    start: int
    end: int
    letters: str
    by_text: bool


def find_mentions(text: str, option: Mapping[str, str], multiple: bool) -> list[Mention]:
    """All mentions in a normalised reply, in order.

    multiple: "all of the above" names every option (unless an option says so itself, which then is the mention).
    """
    mentions = list(_text_mentions(text, option))
    if multiple:
        _add_free(mentions, (Mention(m.start(), m.end(), "".join(option), True) for m in _ALL_OF_THEM.finditer(text)))
    own_text = {mention.start: mention.letters for mention in mentions}
    _add_free(mentions, _letter_mentions(text, "".join(option), own_text))
    return sorted(mentions)


def _add_free(mentions: list[Mention], more: Iterator[Mention]) -> None:
    taken = bytearray(max((mention.end for mention in mentions), default=0))
    for mention in mentions:
        taken[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
    mentions.extend(mention for mention in more if not any(taken[mention.start : mention.end]))


def _text_mentions(text: str, option: Mapping[str, str]) -> Iterator[Mention]:
    texts = {letter: normalise(value).rstrip("。.;, ") for letter, value in option.items()}
    count = Counter(value.lower() for value in texts.values())
    unique = {letter: value for letter, value in texts.items() if value and count[value.lower()] == 1}
    if not unique:
        return
    by_length = sorted(unique, key=lambda letter: -len(unique[letter]))
    pattern = "|".join(f"(?P<{letter}>{_text_pattern(unique[letter])})" for letter in by_length)
    for match in re.finditer(pattern, text, re.IGNORECASE):
        if match.lastgroup:
            yield Mention(match.start(), match.end(), match.lastgroup, True)
    yield from _species_mentions(text, unique)


def _species_mentions(text: str, option: Mapping[str, str]) -> Iterator[Mention]:
    """ "E. coli" for an option that is, or begins with, "Escherichia coli"; not where two options shorten alike."""
    short = {letter: f"{m[1]}. {m[2]}" for letter, value in option.items() if (m := _SPECIES.match(value))}
    for letter, name in short.items():
        if list(short.values()).count(name) == 1:
            genus, species = name.split(". ")
            for match in re.finditer(rf"\b{genus}\. ?{species}\b", text):
                yield Mention(match.start(), match.end(), letter, True)


def _text_pattern(value: str) -> str:
    """Pattern of an option's text: blanks may differ, and words, numbers and single characters stand alone."""
    parts = re.split(r"\s+|(?<=[\u3400-\u9fff])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u3400-\u9fff])", value)
    body = r"\s*".join(re.sub(r"\\?[-~]|至", "[-~至到]", re.escape(part)) for part in parts)
    before = after = ""
    if value[0].isascii() and value[0].isalnum():
        before = r"(?<![A-Za-z0-9])(?<!\d\.)"
    if value[-1].isascii() and value[-1].isalnum():
        after = r"(?![A-Za-z0-9]|\.\d)" if value[-1].isdigit() or len(value) < 4 else r"(?:e?s)?(?![A-Za-z0-9])"
    if value.lower() == "no":
        after = r"(?![A-Za-z0-9])(?!\s+(?!(?:because|since|as|and|but|or)\b)[A-Za-z])"  # not "no difference"
    if len(value) == 1 and value.isascii() and value.isalpha():
        return r"(?!)"  # an option whose text is a letter can only be named by its own letter
    if len(value) == 1 and not value.isascii():
        before, after = r"(?<![^\s,、。:;()是为选])", r"(?![^\s,、。:;()])"
    return before + body + after


def _letter_mentions(text: str, letters: str, own_text: Mapping[int, str]) -> Iterator[Mention]:
    """own_text: {start: letters} of the mentions by text, where a letter may be glued to its own text ("A高盐饮食")."""
    one = f"[{letters}]"
    between = r"(?:项? ?(?:[、,/&+;] ?(?:和|与|and\b|then\b)?|以?及|和|与|\band\b) ?(?:选项|option )?| )"
    pattern = re.compile(f"(?<![A-Za-z0-9°]){one}(?:{_TO}{one}|(?:{between}?{one})*)(?![A-Za-z0-9°'])")
    for match in pattern.finditer(text):
        if own_text.get(match.end()) == match.group():
            yield Mention(match.start(), match.end(), match.group(), False)
        else:
            yield from _bounded(text, match.start(), match.end(), letters)


def _bounded(text: str, start: int, end: int, letters: str) -> Iterator[Mention]:
    """The run of letters at text[start:end], parted where letters after a comma open a new clause ("C,A错误")."""
    run = text[start:end]
    if len(run) > _MAX_RUN:
        return
    if _RANGE.fullmatch(run):
        first, last = sorted((letters.index(run[0]), letters.index(run[-1])))
        yield from _checked(text, start, end, letters[first : last + 1])
        return
    while (cut := _LAST_CLAUSE.search(run)) and not _ends_list(text, end):
        yield from _checked(text, start + cut.start(1), end, _only(run[cut.start(1) :], letters))
        end, run = start + cut.start(), run[: cut.start()]
    yield from _checked(text, start, end, _only(run, letters))


def _only(run: str, letters: str) -> str:
    return "".join(character for character in run if character in letters)


def _checked(text: str, start: int, end: int, named: str) -> Iterator[Mention]:
    """The mention, unless its letters are part of a word or a name, or are named twice."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if (_is_cjk(before) and before not in _MAY_PRECEDE) or (_is_cjk(after) and after not in _MAY_FOLLOW):
        return
    words = text[max(0, start - 16) : start]
    if _NAME_BEFORE_ZH.search(words) and not _LABEL_AFTER.match(text, end):
        return
    if _NAME_BEFORE.search(words) or _WORD_AFTER.match(text, end):
        return
    if end - start == 1 and _SPECIES_AFTER.match(text, end):
        return
    if named and len(set(named)) == len(named):
        yield Mention(start, end, "".join(sorted(named)), False)


def _ends_list(text: str, end: int) -> bool:
    """Whether a list of letters may end here: not when the last letter is the subject of a clause."""
    return _LIST_ENDS.match(text, end) is not None


def _is_cjk(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


_NEGATED_BEFORE = re.compile(
    r"(?:不是|不选|不应选|不该选|不能选|不能是|不会是|不为|不应是|并非|而非|排除(?:了|掉)?|除了?|除外|既非|非"
    r"|\bnot|n't|rather than|instead of|except(?: for)?|excluding|exclude[ds]?|eliminate[ds]?|ruled? out|neither|nor)"
    r"\s?(?:be |choose |pick |select )?(?:the )?(?:答案|选项|选|option |answer |choice )?[:\s(]*$",
    re.IGNORECASE,
)
_UNDECIDED = re.compile(r"\)?\s?,?\s?(?:或者?|还是|\bor\b|\beither\b)\s?(?:选项|选|option )?\s?\(?", re.IGNORECASE)
_LISTED = re.compile(
    r"[)\s]*(?:选?项)?\s?(?:[、,/&+;]\s?(?:和|与|以及|及|还有|and\b)?|和|与|以?及|还有|\band\b|\s|(?<=\))(?=\())\s?(?:选项|选|option )?[(\s]*"
)
# A remark in brackets does not end a list, unless it judges the option: "A. 腹水（正确）".
_ASIDE = re.compile(r"^\s?\((?!正确|错|对|不|√|×|(?:in)?correct|right|wrong|true|false)[^()\n]*\)", re.IGNORECASE)
_LABEL = re.compile(r"(?:选?项)? ?(?:[.、:),-]|,?即|也就是)? ?[(:]?(?:选项|option |choice )?", re.IGNORECASE)
_LIST_GOES_ON = re.compile(r"\s*(?:选?项)?\s*(?:[、,;。.!?:)(\n]|$|和|与|及|或|以及|均|都|三|四|and\b|are\b)")
_OPTION_ENDS = re.compile(r"\s*(?:[;。.!?\n]|$|[A-Z])")
_OPTION_LINE = re.compile(r"(?:\(?[A-Z](?:[.、:) ]\s?[^,。:]{0,60})?|[^,。:\n]{1,60}\([A-Z]\))[)。;,]?")
_MAX_LINE = 80


class Group(NamedTuple):
    """Mentions that form one list ("A、C和E", "C. 血电解质"). decided: no "or" joins them."""

    start: int
    end: int
    letters: str
    by_text: bool
    decided: bool


def group_mentions(text: str, mentions: Sequence[Mention]) -> Iterator[Group]:
    """The groups of all mentions in a normalised reply, in order."""
    index = 0
    while index < len(mentions):
        first = mentions[index]
        group = Group(first.start, first.end, first.letters, first.by_text, True)
        previous, index = first, index + 1
        while index < len(mentions) and (joined := _join(text, group, previous, *mentions[index : index + 2])):
            group, previous, index = joined, mentions[index], index + 1
        yield group


def _join(text: str, group: Group, previous: Mention, following: Mention, after: Mention | None = None) -> Group | None:
    """The group with one more mention, or None when the mention opens something new. after: the mention behind that one."""
    gap = text[previous.end : following.start]
    aside = _ASIDE.sub("", gap)
    longer = group._replace(end=following.end)
    if _UNDECIDED.fullmatch(gap):
        return longer._replace(letters=union(group.letters, following.letters), decided=False)
    is_label = _LABEL.fullmatch(gap) is not None and "\n" not in gap
    if is_label and following.by_text and not previous.by_text:
        return longer  # "C. 血电解质": the letter counts, whatever its text says
    if is_label and previous.by_text and not following.by_text and following.letters in group.letters:
        return longer._replace(by_text=False)  # "血电解质(C)": as good as the letter
    if is_label and previous.by_text and not following.by_text and gap.strip().startswith("("):
        return longer._replace(letters=following.letters)
    is_glued = not gap and previous.by_text and after is not None and _is_glued_to_its_text(text, following, after)
    if not (_LISTED.fullmatch(gap) or (aside != gap and _LISTED.fullmatch(aside)) or is_glued):
        return None
    if gap.endswith("选") and (text[group.start - 1 : group.start] != "选" or is_put_aside(text, group)):
        return None
    if "\n" in gap and not _line_is_option(text, following):
        return None
    is_labelled = after is not None and _is_line_of_option(text, following, after)
    if (
        re.search(r"[,;\s]", gap)
        and not re.search("[和与及]|and", gap)
        and not is_labelled
        and _is_subject(text, following)
    ):
        return None
    return longer._replace(letters=union(group.letters, following.letters))


def _is_line_of_option(text: str, letter: Mention, option: Mention) -> bool:
    """Whether a line is a letter and an option's text, parted by a blank: "C 肥胖"."""
    is_line = text.startswith("\n", letter.start - 1) and (option.end == len(text) or text[option.end] == "\n")
    return option.by_text and is_line and text[letter.end : option.start] == " "


def _is_glued_to_its_text(text: str, letter: Mention, option: Mention) -> bool:
    """Whether a letter and its own option's text stand there without a sign between them, and end the list or go on: "C肥胖"."""
    is_own = option.by_text and option.letters == letter.letters and option.start == letter.end
    return is_own and _OPTION_ENDS.match(text, option.end) is not None


def union(letters: str, more: str) -> str:
    """Letters of both, each once, in order."""
    return "".join(sorted(set(letters) | set(more)))


def _line_is_option(text: str, mention: Mention) -> bool:
    """Whether the mention opens a line as a label ("C. 血电解质") and the line above is an option, too."""
    line = text[mention.start : mention.start + _MAX_LINE].split("\n", 1)[0]
    above = text[max(0, mention.start - _MAX_LINE) : mention.start].rstrip().rsplit("\n", 1)[-1]
    return all(_OPTION_LINE.fullmatch(part.strip()) for part in (line, above))


def _is_subject(text: str, mention: Mention) -> bool:
    """Whether a clause goes on after the mention ("…,A错误") instead of the list ending there."""
    return _LIST_GOES_ON.match(text, mention.end) is None


def is_put_aside(text: str, group: Group) -> bool:
    """Whether the words before the group put it aside: "不选A", "排除A", "rather than A"."""
    return _NEGATED_BEFORE.search(text[max(0, group.start - 32) : group.start]) is not None
