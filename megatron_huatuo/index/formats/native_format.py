"""The tokenizer's own chat format: conversations -> documents whose ids are those of `apply_chat_template`.

Trained on: what the assistant says and the control token that ends it (storage/targets.py adds nothing to that). Texts are
encoded between control tokens, which no tokenizer joins to anything, so the ids are those of the whole text while the text of
a control token inside a value stays text. Invariant: a conversation whose text is not the template's is refused, not guessed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.encoded import EncodedDocuments, RecordFormat, count_untrained_answers, join_documents
from megatron_huatuo.index.formats.chat_template import ChatTemplate, TemplateRefusal
from megatron_huatuo.index.formats.template_layout import Fragment, TemplateLayout, TemplateLayouts, messages_of
from megatron_huatuo.index.tokenizer import Tokenizer
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.records import Conversation, Turn
from megatron_huatuo.storage.targets import CONTEXT, NATIVE_RULE, TRAINED

_PROBES = (
    ("头痛怎么办？", "多休息。"),
    ("What is aspirin?", "A drug.", "1 片吗", "3 times a day"),
)


class _Text(NamedTuple):
    """What stands between two control tokens: fragments, of which the last ones from `first_trained` on are trained on."""

    fragments: tuple[Fragment, ...]
    first_trained: int
    continues: bool
    strips: tuple[bool, bool]


class _Constant(NamedTuple):
    """Ids of one mode that are the same in all conversations of a shape."""

    ids: NDArray[np.int32]
    mode: int


_Texts = tuple[list[str], list[str]]  # to be encoded: those that begin a text, those that continue one
_Step = (
    tuple[_Text, int, int] | _Constant
)  # a text with its number among those to be encoded, and where training begins


class NativeFormat(RecordFormat):
    """A template with a tokenizer, ready to encode. Raises: ConfigError for a template that cannot be followed exactly."""

    name = NATIVE_RULE.chat_format
    counts = ("answers_joined_to_template", "answers_not_trained_on")

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, train_on_thinking: bool) -> None:
        self._tokenizer, self._template, self._train_on_thinking = tokenizer, template, train_on_thinking
        self._layouts = TemplateLayouts(template, tokenizer.control_tokens, train_on_thinking)
        special = [text for text, token in tokenizer.control_tokens.items() if token.is_special]
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._parts = functools.lru_cache(maxsize=256)(self._parts_of)
        self._prefix = functools.lru_cache(maxsize=256)(self._encode_prefix)
        self.end_tokens = self._probe()

    def _probe(self) -> list[str]:
        """Follow the template with two small conversations. Raises: ConfigError naming the place."""
        found: set[str] = set()
        for values in _PROBES:
            turns = tuple(Turn("gpt" if number % 2 else "human", value) for number, value in enumerate(values))
            conversation = Conversation("", turns)
            try:
                layout, _ = self._layouts.find(conversation)
                encoded = self.encode([conversation])
                self.check_ids(conversation, encoded.tokens)
            except TemplateRefusal as error:
                raise ConfigError(
                    f"chat template cannot be followed exactly: {error} ({self._template.path}, {len(turns)} turns). "
                    "Fix the template, or use --chat-format huatuo."
                ) from error
            if encoded.counts["answers_joined_to_template"]:
                raise ConfigError(
                    "chat template cannot be followed exactly: the tokenizer joins the beginning of an answer to the text "
                    f"before it ({self._template.path}). Use --chat-format huatuo."
                )
            found |= layout.end_tokens
        return sorted(found)

    def parse(self, raw: Any, where: str, notes: Counter[str] | None = None) -> list[Conversation]:
        return parse_conversations(raw, where, notes)

    def texts_of(self, record: Conversation) -> list[str]:
        return [*([] if record.system is None else [record.system]), *(turn.value for turn in record.turns)]

    def describe(self) -> dict[str, Any]:
        template = self._template
        return {
            "train_on_thinking": self._train_on_thinking,
            "chat_template": {
                "sha256": template.sha256,
                "date": None if template.date is None else template.date.isoformat(),
                "end_tokens": self.end_tokens,
                "text": template.text,
            },
        }

    def count_mismatches(
        self, records: Sequence[Conversation], encoded: EncodedDocuments, limit: int | None = None
    ) -> tuple[int, int]:
        """As in RecordFormat; a conversation that holds the text of a special token is left out: read whole, it would
        give the special id."""
        ends = encoded.document_ends()
        checked = mismatched = 0
        for start, end, position in zip([0, *ends.tolist()], ends.tolist(), encoded.kept.tolist(), strict=False):
            if checked == limit:
                break
            if not any(map(self._special.search, self.texts_of(records[position]))):
                checked += 1
                try:
                    self.check_ids(records[position], encoded.tokens[start:end])
                except TemplateRefusal:
                    mismatched += 1
        return checked, mismatched

    def check_ids(self, conversation: Conversation, ids: NDArray[np.int32]) -> None:
        """Raises: TemplateRefusal unless the ids are those of the whole rendered text."""
        text = self._template.render(messages_of(conversation))
        whole = self._tokenizer.encode_rendered(text)
        if not np.array_equal(whole, ids):
            place = int(np.argmin(np.append(whole[: len(ids)] == ids[: len(whole)], False)))
            shown = self._tokenizer.decode(whole[max(0, place - 2) : place + 3].tolist())
            raise TemplateRefusal(f"the tokenizer reads its whole text otherwise than its parts, at {shown!r}")

    def encode(self, conversations: Sequence[Conversation]) -> EncodedDocuments:
        """One document per conversation that the template takes; the others are in `refused`, with the reason."""
        texts: _Texts = ([], [])
        plans: dict[int, list[_Step]] = {}  # by position
        refused: list[tuple[int, str]] = []
        for position, conversation in enumerate(conversations):
            try:
                layout, values = self._layouts.find(conversation)
            except TemplateRefusal as error:
                refused.append((position, f"chat template does not take this conversation: {error}"))
            else:
                plans[position] = _plan(self._parts(layout), values, texts)
        ids = [self._tokenizer.encode_batch(some, continues=bool(continues)) for continues, some in enumerate(texts)]
        documents = {position: self._document(plan, texts, ids) for position, plan in plans.items()}
        kept = [position for position, (runs, _) in documents.items() if any(mode for part, mode in runs if len(part))]
        found = join_documents([documents[position][0] for position in kept], np.array(kept, np.int64))
        found.refused.extend(refused)
        if len(kept) < len(documents):
            found.dropped["no answer to train on"] = len(documents) - len(kept)
        found.counts["answers_joined_to_template"] = sum(documents[position][1] for position in kept)
        found.counts["answers_not_trained_on"] = count_untrained_answers(conversations)
        return found

    def _document(
        self, plan: list[_Step], texts: _Texts, ids: list[list[NDArray[np.int32]]]
    ) -> tuple[list[tuple[NDArray[np.int32], int]], int]:
        """(runs of ids and modes, answers whose beginning the tokenizer joins to the template) of one conversation."""
        runs: list[tuple[NDArray[np.int32], int]] = []
        joined = 0
        for step in plan:
            if isinstance(step, _Constant):
                runs.append((step.ids, step.mode))
                continue
            part, number, boundary = step
            found = ids[part.continues][number]
            if part.first_trained == len(part.fragments):
                runs.append((found, CONTEXT))
                continue
            first, is_exact = self._first_trained(part, texts[part.continues][number], boundary, found)
            joined += not is_exact
            runs += [(found[:first], CONTEXT), (found[first:], TRAINED)]
        return runs, joined

    def _first_trained(self, part: _Text, text: str, boundary: int, ids: NDArray[np.int32]) -> tuple[int, bool]:
        """(number of the first trained token of a text, whether no token stands on both sides of the boundary)."""
        if boundary == 0:
            return 0, True
        prefix = self._prefix(text[:boundary], part.continues)
        if np.array_equal(ids[: len(prefix)], prefix):
            return len(prefix), True
        starts = self._tokenizer.token_starts(text, continues=part.continues)
        return int(np.searchsorted(starts, boundary)), boundary in starts

    def _encode_prefix(self, text: str, continues: bool) -> NDArray[np.int32]:
        return self._tokenizer.encode_batch([text], continues=continues)[0]

    def _parts_of(self, layout: TemplateLayout) -> tuple[_Text | _Constant, ...]:
        """Control tokens, and the texts between them; those without a value are encoded here, once."""
        control_tokens = self._tokenizer.control_tokens
        parts: list[_Text | _Constant] = []
        texts: list[Fragment] = []
        strips_left, continues = False, False
        for fragment in (*layout.fragments, None):
            token = None if fragment is None or fragment.value is not None else control_tokens.get(fragment.text)
            if fragment is not None and token is None:
                texts.append(fragment)
                continue
            if texts:
                strips = (strips_left, token is not None and token.swallows_before)
                parts += self._text_part(tuple(texts), continues, strips)
                texts = []
            if fragment is not None and token is not None:
                self._check_number(fragment.text, token.number)
                parts.append(_Constant(np.array([token.number], np.int32), _mode(fragment.is_trained)))
                strips_left, continues = token.swallows_behind, not self._tokenizer.is_prefixed_behind_control
        return tuple(_merge_constants(parts))

    def _text_part(
        self, fragments: tuple[Fragment, ...], continues: bool, strips: tuple[bool, bool]
    ) -> list[_Text | _Constant]:
        first_trained = next((n for n, one in enumerate(fragments) if one.is_trained), len(fragments))
        part = _Text(fragments, first_trained, continues, strips)
        if any(one.value is not None for one in fragments) or 0 < first_trained < len(fragments):
            return [part]
        text, _ = _fill(part, [])
        return [_Constant(self._encode_prefix(text, continues), _mode(first_trained == 0))]

    def _check_number(self, text: str, number: int) -> None:
        if number >= self._tokenizer.vocab_size:
            raise ConfigError(
                f"chat template writes {text}, which {self._tokenizer.path} lacks: its settings add it as id {number}, "
                f"need one below {self._tokenizer.vocab_size}. Use the model's tokenizer.json."
            )


def _mode(is_trained: bool) -> int:
    return TRAINED if is_trained else CONTEXT


def _plan(parts: Iterable[_Text | _Constant], values: Sequence[str], texts: _Texts) -> list[_Step]:
    """The parts of one conversation; its texts are added to those that are to be encoded."""
    plan: list[_Step] = []
    for part in parts:
        if isinstance(part, _Constant):
            plan.append(part)
            continue
        text, boundary = _fill(part, values)
        plan.append((part, len(texts[part.continues]), boundary))
        texts[part.continues].append(text)
    return plan


def _fill(part: _Text, values: Sequence[str]) -> tuple[str, int]:
    """(text, where the trained part of it begins) with the values in their places."""
    pieces = [one.text if one.value is None else values[one.value] for one in part.fragments]
    boundary = sum(map(len, pieces[: part.first_trained]))
    text = "".join(pieces)
    if part.strips[0]:
        stripped = text.lstrip()
        boundary, text = max(0, boundary - (len(text) - len(stripped))), stripped
    if part.strips[1]:
        text = text.rstrip()
    return text, min(boundary, len(text))


def _merge_constants(parts: Iterable[_Text | _Constant]) -> list[_Text | _Constant]:
    merged: list[_Text | _Constant] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, _Constant) and isinstance(last, _Constant) and part.mode == last.mode:
            merged[-1] = _Constant(np.concatenate([last.ids, part.ids]), last.mode)
        else:
            merged.append(part)
    return merged
