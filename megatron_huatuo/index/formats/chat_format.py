"""The recipe's chat format: conversation -> segments with modes.

`<问>：{question}\\n<答>：{answer}`, turns joined by "\\n", no system prompt, no bos. Segments are encoded one by one, so
that training sees the very ids that a served prompt gives; mode 0 is context (question and role tags), mode 1 an
answer. The end-of-document id (eos) closes the last answer only; that it is the *target* of the last token of every
answer is decided in storage/targets.py. Invariant: text inside a value never changes a mode and never yields an eos.
Facts: docs/data_formats.md.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.index.encoded import EncodedDocuments, RecordFormat, count_untrained_answers
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.records import Conversation, Turn
from megatron_huatuo.storage.targets import CONTEXT, HUATUO_RULE, TRAINED

if TYPE_CHECKING:
    from megatron_huatuo.index.tokenizer import Tokenizer

QUESTION_TAG = "<问>："
ANSWER_TAG = "\n<答>："
# The served form. A system message joins the first question, as it does when conversations are read for training.
CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='', first=true) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] + '\\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- ('' if ns.first else '\\n') + '" + QUESTION_TAG + "' + ns.system + message['content'] -}}"
    "{%- set ns.first = false -%}{%- set ns.system = '' -%}"
    "{%- else -%}{{- '" + ANSWER_TAG.replace("\n", "\\n") + "' + message['content'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + ANSWER_TAG.replace("\n", "\\n") + "' -}}{%- endif -%}"
)
_NOTHING = np.zeros(0, dtype=np.int32)


def render(turns: Sequence[Turn]) -> str:
    """The text that the served chat template writes for these turns, without eos.

    >>> render([Turn("human", "头痛？"), Turn("gpt", "休息。"), Turn("human", "药？"), Turn("gpt", "不用。")])
    '<问>：头痛？\\n<答>：休息。\\n<问>：药？\\n<答>：不用。'
    """
    return "".join(segment_texts(turns))


def written_turns(conversation: Conversation) -> tuple[Turn, ...]:
    """What the format writes: the system's text opens the first question, and nothing stands behind the last answer that
    is trained on. Where no answer is, all turns."""
    turns = conversation.opened_turns()
    stop = next((stop for stop in range(len(turns), 0, -2) if turns[stop - 1].trained), len(turns))
    return turns[:stop]


def segment_texts(turns: Sequence[Turn]) -> list[str]:
    """The texts that are encoded one by one: question, answer, question, … each with its role tag in front."""
    texts = []
    for position, turn in enumerate(turns):
        if turn.speaker == "gpt":
            texts.append(ANSWER_TAG + turn.value)
        else:
            texts.append(("\n" if position else "") + QUESTION_TAG + turn.value)
    return texts


@functools.cache
def encode_tag(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Ids of the answer's tag. Raises ConfigError when the tokenizer has no ids for it."""
    tag = tokenizer.encode_batch([ANSWER_TAG], continues=True)[0]
    if len(tag) == 0:
        raise ConfigError(f"tokenizer gives no ids for the role tag {ANSWER_TAG!r}: {tokenizer.path}. Use another one.")
    return tag


def encode_conversations(conversations: Sequence[Conversation], tokenizer: Tokenizer) -> EncodedDocuments:
    """Encode conversations into documents of context and trained segments.

    A question and the tag of its answer make one sequence of mode 0, the answer one of mode 1, the last one with eos; an
    answer that is not trained on has mode 0. Where enc(tag) is not a prefix of enc(tag + answer), tag and answer are encoded
    apart. A conversation is dropped and counted when an answer has no token, when its text yields an eos, or when no
    answer is trained on.
    """
    written = [written_turns(conversation) for conversation in conversations]
    texts = [text for turns in written for text in segment_texts(turns)]
    pairs = np.array([len(turns) // 2 for turns in written], dtype=np.int64)
    trained = np.array([turn.trained for turns in written for turn in turns[1::2]], dtype=bool)
    ids = _encode_segments(texts, 2 * pairs, tokenizer)
    tag = encode_tag(tokenizer)
    tags_apart = _encode_tags_apart(ids, texts, tag, tokenizer)

    lengths = np.array([len(segment) for segment in ids], dtype=np.int64)
    flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    owner = np.repeat(np.arange(len(pairs)), pairs)  # conversation of each question-answer pair
    keep = np.ones(len(pairs), dtype=bool)
    dropped: Counter[str] = Counter()
    stray_eos = np.searchsorted(np.cumsum(lengths), np.flatnonzero(flat == tokenizer.eos_id), side="right")
    for reason, bad in (
        ("answer without a token", owner[lengths[1::2] == len(tag)]),
        ("text yields the end-of-document id", owner[stray_eos // 2]),
        ("no answer to train on", np.setdiff1d(owner, owner[trained])),
    ):
        found = np.unique(bad[keep[bad]])
        keep[found] = False
        if len(found):
            dropped[reason] += len(found)
    if dropped:
        keep_segment = np.repeat(keep[owner], 2)
        flat, lengths, pairs = flat[np.repeat(keep_segment, lengths)], lengths[keep_segment], pairs[keep]
        trained = trained[keep[owner]]

    is_last = np.zeros(len(lengths) // 2, dtype=np.int64)
    is_last[np.cumsum(pairs) - 1] = 1
    eos_places = np.cumsum(lengths)[1::2][is_last == 1]
    sequence_lengths = np.empty_like(lengths)
    sequence_lengths[0::2] = lengths[0::2] + len(tag)
    sequence_lengths[1::2] = lengths[1::2] - len(tag) + is_last
    return EncodedDocuments(
        tokens=np.insert(flat, eos_places, tokenizer.eos_id),
        sequence_lengths=sequence_lengths,
        sequence_modes=np.stack([np.full(len(trained), CONTEXT), np.where(trained, TRAINED, CONTEXT)], 1)
        .astype(np.int8)
        .ravel(),
        sequences_per_document=2 * pairs,
        kept=np.flatnonzero(keep),
        dropped=dropped,
        counts=Counter(tags_encoded_apart=tags_apart),
    )


def _encode_segments(texts: list[str], counts: NDArray[np.int64], tokenizer: Tokenizer) -> list[NDArray[np.int32]]:
    """Ids of the segments of all conversations, `counts` segments each; in two calls of the tokenizer."""
    opens = np.zeros(len(texts), dtype=bool)
    opens[np.cumsum(counts) - counts] = True
    ids: list[NDArray[np.int32]] = [_NOTHING] * len(texts)
    for continues, places in ((False, np.flatnonzero(opens)), (True, np.flatnonzero(~opens))):
        found = tokenizer.encode_batch([texts[place] for place in places], continues=continues)
        for place, segment in zip(places, found, strict=True):
            ids[place] = segment
    return ids


def _encode_tags_apart(
    ids: list[NDArray[np.int32]], texts: list[str], tag: NDArray[np.int32], tokenizer: Tokenizer
) -> int:
    """Replace the answers in `ids` that do not begin with the tag's ids; returns their number."""
    tag_bytes, size = tag.tobytes(), len(tag)
    apart = [number for number in range(1, len(ids), 2) if ids[number][:size].tobytes() != tag_bytes]
    values = [texts[number][len(ANSWER_TAG) :] for number in apart]
    answers = tokenizer.encode_batch(values, continues=True) if apart else []
    for number, answer in zip(apart, answers, strict=True):
        ids[number] = np.concatenate([tag, answer])
    return len(apart)


def count_template_mismatches(
    conversations: Sequence[Conversation], encoded: EncodedDocuments, tokenizer: Tokenizer, limit: int | None = None
) -> tuple[int, int]:
    """(checked, mismatched) of the first `limit` documents (None: all): stored ids against the whole text's, at once.

    A mismatch means that a served prompt gives other ids than training saw (merges across a tag).
    """
    ends = encoded.document_ends()
    starts = np.concatenate([[0], ends[:-1]])
    chosen = range(len(encoded.kept))[:limit]
    texts = [render(written_turns(conversations[int(encoded.kept[number])])) for number in chosen]
    whole = tokenizer.encode_batch(texts) if texts else []
    stored = (encoded.tokens[starts[number] : ends[number] - 1] for number in chosen)
    return len(texts), sum(not np.array_equal(one, other) for one, other in zip(whole, stored, strict=True))


class HuatuoFormat(RecordFormat):
    """The recipe's format with a tokenizer. Raises: ConfigError when the tokenizer has no ids for the answer's tag."""

    name = HUATUO_RULE.chat_format
    counts = ("tags_encoded_apart", "system_in_question", "answers_not_trained_on")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        encode_tag(tokenizer)

    def parse(self, raw: Any, where: str, notes: Counter[str] | None = None) -> list[Conversation]:
        return parse_conversations(raw, where, notes)

    def texts_of(self, record: Conversation) -> list[str]:
        return [*([] if record.system is None else [record.system]), *(turn.value for turn in record.turns)]

    def encode(self, records: Sequence[Conversation]) -> EncodedDocuments:
        found = encode_conversations(records, self._tokenizer)
        found.counts["system_in_question"] = sum(one.system is not None for one in records)
        found.counts["answers_not_trained_on"] = count_untrained_answers(records)
        return found

    def count_mismatches(
        self, records: Sequence[Conversation], encoded: EncodedDocuments, limit: int | None = None
    ) -> tuple[int, int]:
        return count_template_mismatches(records, encoded, self._tokenizer, limit)
