"""What a chat template looks at in the texts that it writes down: found by one rendering with placeholders.

A placeholder can be written, joined and stripped, and answers the few questions whose answer follows from a list of texts
that must not occur in it ("is '</think>' in content"). Any other question ends the trace. So a template that passes gives
every conversation of one shape the same text around its values, as long as these are stripped, not empty, and free of
the listed texts; such conversations need not be rendered one by one.

Invariant: no question about a text goes unseen. Macros, blocks and filters that capture output would hide some: templates
that use them are not traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import jinja2.nodes

from megatron_huatuo.index.formats.chat_template import ChatTemplate, Message, template_environment

_CAPTURING = (
    jinja2.nodes.Macro,
    jinja2.nodes.CallBlock,
    jinja2.nodes.FilterBlock,
    jinja2.nodes.AssignBlock,
    jinja2.nodes.Block,
    jinja2.nodes.Include,
    jinja2.nodes.Import,
    jinja2.nodes.FromImport,
)


class _UnseenQuestionError(Exception):
    """The template asks what a placeholder cannot answer. No subclass of what Jinja catches."""


class Placeholder:
    """Stands for the text of one message. must_not_hold: collects the texts that it was asked for."""

    def __init__(self, parts: tuple[str, ...], must_not_hold: set[str]) -> None:
        self._parts, self._must_not_hold = parts, must_not_hold

    @property
    def _is_bare(self) -> bool:
        return len(self._parts) == 1

    def __add__(self, other: object) -> Placeholder:
        return Placeholder((*self._parts, *self._parts_of(other)), self._must_not_hold)

    def __radd__(self, other: object) -> Placeholder:
        return Placeholder((*self._parts_of(other), *self._parts), self._must_not_hold)

    def _parts_of(self, other: object) -> tuple[str, ...]:
        if isinstance(other, Placeholder):
            return other._parts
        if isinstance(other, str):
            return (other,)
        raise _UnseenQuestionError

    def strip(self, characters: str | None = None) -> Placeholder:
        if not self._is_bare or not (characters is None or characters.isspace()):
            raise _UnseenQuestionError
        return self

    lstrip = rstrip = strip

    def __contains__(self, text: object) -> bool:
        return self._note(text)

    def startswith(self, text: object) -> bool:
        return self._note(text)

    def endswith(self, text: object) -> bool:
        return self._note(text)

    def __eq__(self, other: object) -> bool:
        return False if other is None else self._note(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def _note(self, text: object) -> bool:
        if not self._is_bare or not isinstance(text, str):
            raise _UnseenQuestionError
        if text.strip():
            self._must_not_hold.add(text)
        elif text:
            raise _UnseenQuestionError  # white space within a text is nothing unusual
        return False

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> NoReturn:
        if hasattr(str, name):
            raise _UnseenQuestionError
        raise AttributeError(name)

    def _refuse(self, *_: object) -> NoReturn:
        raise _UnseenQuestionError

    __str__ = __len__ = __iter__ = __getitem__ = __mod__ = __mul__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __html__ = __format__ = __repr__ = _refuse


def trace_template(template: ChatTemplate, messages: Sequence[Message], expected: str) -> frozenset[str] | None:
    """Texts that must not occur in values for them to be written as those of `messages` are; None where that is unknown.

    messages: with a marker of its own as the text of each; expected: what the template makes of them.
    """
    must_not_hold: set[str] = set()
    environment = template_environment(finalize=_written)
    if _captures_output(environment.parse(template.text)):
        return None
    environment.filters["trim"] = _trim
    for name in ("string", "iterable", "sequence"):
        environment.tests[name] = _true_of_placeholders(cast(Callable[..., bool], environment.tests[name]))
    placed = [{**one, "content": Placeholder((one["content"],), must_not_hold)} for one in messages]
    try:
        text = template.compile_in(environment).render(
            messages=placed, tools=None, documents=None, add_generation_prompt=False, **template.special_tokens
        )
    except Exception:  # of the template, or a question unseen
        return None
    return frozenset(must_not_hold) if text == expected else None


def _captures_output(tree: jinja2.nodes.Template) -> bool:
    return any(
        not isinstance(node, jinja2.nodes.For) or node.recursive
        for node in tree.find_all((*_CAPTURING, jinja2.nodes.For))
    )


def _written(value: Any) -> Any:
    return "".join(value._parts) if isinstance(value, Placeholder) else value


def _trim(value: Any, characters: str | None = None) -> Any:
    return value.strip(characters) if isinstance(value, Placeholder) else str(value).strip(characters)


def _true_of_placeholders(test: Callable[..., bool]) -> Callable[..., bool]:
    return lambda value, *rest: isinstance(value, Placeholder) or test(value, *rest)
