"""Where the values of a conversation stand in the text of its chat template, and which of that text is trained on.

The template is rendered once per *shape* (which turns there are, and which of them think or are trained on) with a marker in
the place of every value. What stands between the markers is the template's own text. An answer is trained on from where a
served prompt ends (the template's own `add_generation_prompt`) to the control token behind it, which ends the answer.

Invariant: a layout filled with values is the rendered text, character by character, or the conversation is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_huatuo.index.formats.chat_template import ChatTemplate, TemplateRefusal
from megatron_huatuo.index.formats.template_trace import trace_template
from megatron_huatuo.storage.records import Conversation

_END_OF_THOUGHT = "</think>"
_THOUGHT = re.compile(rf"(\s*(?:<think>\s*)?)(.*?)(\s*{_END_OF_THOUGHT}\s*)(.*)", re.DOTALL)
# Private-use characters: no template asks for them, and no tokenizer sees them.
_MARKER = re.compile("\ue0f0([0-9]+)\ue0f1")


class Thought(NamedTuple):
    """What stands around a thought in an answer: `<think>` and `</think>` with their white space, as the record has them."""

    opening: str
    closing: str


class Shape(NamedTuple):
    """What two conversations share that are written alike.

    thoughts: of each answer, None where it has none. trained: of each answer, whether it is trained on.
    """

    has_system: bool
    thoughts: tuple[Thought | None, ...]
    trained: tuple[bool, ...]


class Fragment(NamedTuple):
    """A piece of the rendered text: the template's own, or the value with this number."""

    text: str
    value: int | None
    is_trained: bool


@dataclass(frozen=True, eq=False)
class TemplateLayout:
    """The fragments of one shape, in order.

    must_not_hold: texts that values must be free of to be written as the fragments say without being rendered; None where
    every conversation has to be rendered. Fragments of a template's own text hold no control token but as a whole.
    """

    fragments: tuple[Fragment, ...]
    must_not_hold: frozenset[str] | None

    @property
    def end_tokens(self) -> set[str]:
        """Control tokens that end its answers."""
        found = set()
        for fragment, following in zip(self.fragments, (*self.fragments[1:], None), strict=True):
            if fragment.value is None and fragment.is_trained and (following is None or not following.is_trained):
                found.add(fragment.text)
        return found


def shape_of(conversation: Conversation) -> tuple[Shape, list[str]]:
    """The shape of a conversation and its values, in order: system, then per pair the question, the thought where there
    is one, and the answer."""
    values = [] if conversation.system is None else [conversation.system]
    thoughts: list[Thought | None] = []
    for turn in conversation.turns:
        if turn.speaker != "gpt":
            values.append(turn.value)
            continue
        found = _THOUGHT.fullmatch(turn.value) if _END_OF_THOUGHT in turn.value else None
        thoughts.append(None if found is None else Thought(found[1], found[3]))
        values += [turn.value] if found is None else [found[2], found[4]]
    trained = tuple(turn.trained for turn in conversation.turns if turn.speaker == "gpt")
    return Shape(conversation.system is not None, tuple(thoughts), trained), values


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """Messages as chat templates and servers take them."""
    messages = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
    roles = {"human": "user", "gpt": "assistant"}
    return [*messages, *({"role": roles[turn.speaker], "content": turn.value} for turn in conversation.turns)]


class TemplateLayouts:
    """The layouts of one template, made when they are first needed.

    control_tokens: texts that the tokenizer reads as one id each. train_on_thinking: whether a thought is trained on.
    """

    def __init__(self, template: ChatTemplate, control_tokens: Iterable[str], train_on_thinking: bool) -> None:
        self._template, self._train_on_thinking = template, train_on_thinking
        longest_first = sorted(control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._known: dict[Shape, TemplateLayout | TemplateRefusal] = {}

    def of_shape(self, shape: Shape) -> TemplateLayout:
        """Raises: TemplateRefusal where the template does not take such turns, or cannot be followed exactly, with the
        place."""
        if shape not in self._known:
            try:
                self._known[shape] = self._make(shape)
            except TemplateRefusal as error:
                self._known[shape] = self._explained(shape, error)
        found = self._known[shape]
        if isinstance(found, TemplateRefusal):
            raise found
        return found

    def _explained(self, shape: Shape, error: TemplateRefusal) -> TemplateRefusal:
        """A refusal that is due to the system turn says so."""
        if shape.has_system:
            try:
                self.of_shape(shape._replace(has_system=False))
            except TemplateRefusal:
                return error
            return TemplateRefusal(f"it has no place for a system turn ({error})")
        return error

    def find(self, conversation: Conversation) -> tuple[TemplateLayout, list[str]]:
        """The layout of a conversation and its values as the template writes them (many strip them).

        Raises: TemplateRefusal.
        """
        shape, values = shape_of(conversation)
        layout = self.of_shape(shape)
        if layout.must_not_hold is not None and all(
            value and not (value[0].isspace() or value[-1].isspace()) for value in values
        ):
            joined = "\n".join(values)
            if not any(text in joined for text in layout.must_not_hold):
                return layout, values
        return layout, self._values_in(self._template.render(messages_of(conversation)), layout, values)

    def _values_in(self, text: str, layout: TemplateLayout, values: list[str]) -> list[str]:
        """The values as they stand in a rendered text, which must be the layout filled with them."""
        found, place, fragments = list(values), 0, layout.fragments
        for number, fragment in enumerate(fragments):
            if fragment.value is None:
                if not text.startswith(fragment.text, place):
                    raise TemplateRefusal(f"it writes something else at {text[place : place + 20]!r}")
                place += len(fragment.text)
                continue
            following = _text_until_value(fragments[number + 1 :])
            for candidate in _ways_to_strip(values[fragment.value]):
                end = place + len(candidate)
                if text.startswith(candidate, place) and text.startswith(following, end):
                    found[fragment.value], place = candidate, end
                    break
            else:
                raise TemplateRefusal(f"it does not write the text {values[fragment.value][:20]!r} as it is")
        if place != len(text):
            raise TemplateRefusal(f"it writes something else at {text[place : place + 20]!r}")
        return found

    def _make(self, shape: Shape) -> TemplateLayout:
        messages = _marked_messages(shape)
        text = self._template.render(messages)
        places = self._markers(text, messages)
        intervals = list(self._trained_intervals(shape, messages, text, places))
        fragments = tuple(self._cut(text, places, intervals))
        has_thoughts = any(thought is not None for thought in shape.thoughts)
        return TemplateLayout(fragments, None if has_thoughts else trace_template(self._template, messages, text))

    def _markers(self, text: str, messages: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
        """{value: (start, end)} of the markers in a text. Thoughts of earlier answers may be left out, nothing else."""
        found = [(int(match[1]), match.span()) for match in _MARKER.finditer(text)]
        numbers = [number for number, _ in found]
        for message in messages:
            last = int(_MARKER.findall(message["content"])[-1])
            if numbers.count(last) != 1:
                many = "more than once" if last in numbers else "nowhere"
                raise TemplateRefusal(f"it writes the text of a {message['role']} turn {many}")
        if len(set(numbers)) != len(numbers):
            raise TemplateRefusal("it writes a thought more than once")
        return dict(found)

    def _trained_intervals(
        self, shape: Shape, messages: list[dict[str, Any]], text: str, places: dict[int, tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """(start, end) in the text of each answer that is trained on, its end token included."""
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for answer, number in enumerate(answers):
            value = int(_MARKER.findall(messages[number]["content"])[-1])
            first = int(_MARKER.findall(messages[number]["content"])[0])
            start = self._start(messages[:number], text, places, first if first in places else value)
            if shape.thoughts[answer] is not None or _END_OF_THOUGHT in text[start : places[value][0]]:
                start = start if self._train_on_thinking else self._after_thought(text, start, places[value][0])
            end = self._end(text, places[value][1], number)
            if shape.trained[answer]:
                yield start, end

    def _start(self, before: list[dict[str, Any]], text: str, places: dict[int, tuple[int, int]], value: int) -> int:
        """Where the model would begin to write: behind what a served prompt has after the last value."""
        prompt = self._template.render(before, add_generation_prompt=True)
        opening = prompt[max((match.end() for match in _MARKER.finditer(prompt)), default=0) :]
        start = max((end for _, end in places.values() if end <= places[value][0]), default=0)
        if not text.startswith(opening, start) or start + len(opening) > places[value][0]:
            raise TemplateRefusal(
                f"a served prompt ends with {opening!r}, but a written answer begins with {text[start : places[value][0]]!r}"
            )
        return start + len(opening)

    @staticmethod
    def _after_thought(text: str, start: int, end: int) -> int:
        """Behind the end of the thought and its white space; the start where none is written."""
        found = text.find(_END_OF_THOUGHT, start, end)
        if found < 0:
            return start
        rest = text[found + len(_END_OF_THOUGHT) : end]
        return end - len(rest.lstrip())

    def _end(self, text: str, start: int, number: int) -> int:
        """Behind the control tokens that end an answer."""
        end = start = len(text) - len(text[start:].lstrip())
        for _ in range(self._ending_tokens):
            found = self._control.match(text, end)
            if found is None:
                break
            end = found.end()
        if end == start:
            shown = _MARKER.sub("…", text[start : start + 24])
            raise TemplateRefusal(f"no control token ends the answer of turn {number}, which {shown!r} follows")
        return end

    @functools.cached_property
    def _ending_tokens(self) -> int:
        """How many control tokens end an answer: those that follow an earlier and the last one alike, and at least one."""
        messages = _marked_messages(Shape(False, (None, None), (True, True)))
        try:
            text = self._template.render(messages)
        except TemplateRefusal:
            return 1
        ends = [match.end() for match in _MARKER.finditer(text)]
        if len(ends) != len(messages):
            return 1
        last = text[ends[-1] :]
        behind = next(last[:size] for size in range(len(last), -1, -1) if text.startswith(last[:size], ends[1]))
        count, place = 0, len(behind) - len(behind.lstrip())
        while found := self._control.match(behind, place):
            count, place = count + 1, found.end()
        return max(count, 1)

    def _cut(
        self, text: str, places: dict[int, tuple[int, int]], intervals: list[tuple[int, int]]
    ) -> Iterator[Fragment]:
        """The text in fragments: values, control tokens, and other text, each trained on as a whole or not at all."""
        by_start = {start: (end, value) for value, (start, end) in places.items()}
        bounds = sorted({edge for interval in intervals for edge in interval})
        place = 0
        while place < len(text):
            is_trained = any(start <= place < end for start, end in intervals)
            if place in by_start:
                end, value = by_start[place]
                yield Fragment("", value, is_trained)
            elif (found := self._control.match(text, place)) is not None:
                end = found.end()
                yield Fragment(found[0], None, is_trained)
            else:
                found = self._control.search(text, place)
                stops = [len(text), *by_start, *bounds, *([found.start()] if found else [])]
                end = min(stop for stop in stops if stop > place)
                yield Fragment(text[place:end], None, is_trained)
            place = end


def _marked_messages(shape: Shape) -> list[dict[str, Any]]:
    """Messages of a shape with a marker in the place of every value."""
    numbers = iter(range(10**9))

    def marker() -> str:
        return f"\ue0f0{next(numbers)}\ue0f1"

    messages = [{"role": "system", "content": marker()}] if shape.has_system else []
    for thought in shape.thoughts:
        messages.append({"role": "user", "content": marker()})
        content = marker() if thought is None else f"{thought.opening}{marker()}{thought.closing}{marker()}"
        messages.append({"role": "assistant", "content": content})
    return messages


def _text_until_value(fragments: Sequence[Fragment]) -> str:
    """The template's own text up to the next value."""
    texts = []
    for fragment in fragments:
        if fragment.value is not None:
            break
        texts.append(fragment.text)
    return "".join(texts)


def _ways_to_strip(value: str) -> tuple[str, ...]:
    return (
        value,
        value.strip(),
        value.lstrip("\n"),
        value.rstrip("\n"),
        value.strip("\n"),
        value.lstrip(),
        value.rstrip(),
    )
