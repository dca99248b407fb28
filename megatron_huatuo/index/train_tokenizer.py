"""Train a SentencePiece vocabulary of one's own, for the demo and for models that start from nothing.

Invariant: the ids are the same in SentencePiece and in a Hugging Face export. That holds for BPE (a unigram model loads in
transformers but splits most texts otherwise: 557 of 657 in our trial), without dummy prefix and with identity
normalisation. Ids as in Llama and Baichuan2: unk 0 (also padding), bos 1, eos 2, then 256 bytes, so no text is unknown.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import Any

from megatron_huatuo.errors import ConfigError, DataError, HuatuoError
from megatron_huatuo.index.formats.chat_format import ANSWER_TAG, QUESTION_TAG
from megatron_huatuo.log import get_logger, progress
from megatron_huatuo.storage.atomic import atomic_directory
from megatron_huatuo.storage.jsonl import BadLines
from megatron_huatuo.storage.manifest import write_json, write_manifest
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.record_files import read_records
from megatron_huatuo.storage.records import parse_document

_log = get_logger(__name__)

# How transformers must open the model to give SentencePiece's own ids: nothing in front, nothing behind.
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_prefix_space": False,
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}
_SAMPLE_TEXTS = 1_000_000
# Signs of the role tags stand alone: a piece such as "。\\n" would join a question to the tag of its answer, and a served
# prompt would then give other ids than training saw.
_TAG_SIGNS = re.compile("[\n<>：]")


def train_tokenizer(
    inputs: Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    vocab_size: int,
    *,
    max_bad_lines: int = 0,
) -> dict[str, Any]:
    """Train on the texts of documents and conversations; write `tokenizer.model`, its config and a manifest.

    inputs: JSON Lines of Document or Conversation records; over a million texts, a random million is used.
    output: directory, replaced when it exists.
    Deterministic. Memory: about 1 GB for a million texts.

    Raises: ConfigError when the vocabulary is too small for the texts' characters; DataError for bad or empty input.
    """
    bad = BadLines(max_bad_lines)
    model = _train(_texts([fspath(path) for path in inputs], bad), vocab_size)
    with atomic_directory(output, replace=True) as directory:
        (directory / "tokenizer.model").write_bytes(model)
        write_json(directory / "tokenizer_config.json", TOKENIZER_CONFIG)
        content = {"inputs": [fspath(path) for path in inputs], "dropped": bad.count_by_reason()}
        manifest = write_manifest(directory, "tokenizer", content, ["tokenizer.model", "tokenizer_config.json"])
    _log.info("%s: SentencePiece model of %d bytes, asked for %d pieces", fspath(output), len(model), vocab_size)
    return manifest


def _texts(paths: Iterable[str], bad: BadLines) -> Iterator[str]:
    for path in paths:
        yield from progress(read_records(path, _parse_texts, bad), description=f"read {path}", unit="text")


def _parse_texts(raw: Any, where: str) -> list[str]:
    if isinstance(raw, dict) and "text" in raw:
        document = parse_document(raw, where)
        texts = [document.title or "", document.text]
    else:
        texts = [turn.value for conversation in parse_conversations(raw, where) for turn in conversation.turns]
    return [piece for text in texts for piece in _TAG_SIGNS.split(text) if piece.strip()]


def _train(texts: Iterator[str], vocab_size: int) -> bytes:
    import sentencepiece

    first = next(texts, None)
    if first is None:
        raise DataError("no text to train a tokenizer on: the input files hold none. Check --input.")
    sentencepiece.set_random_generator_seed(0)
    written = io.BytesIO()
    bad_input: list[HuatuoError] = []  # sentencepiece turns what its iterator raises into a RuntimeError
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], _noting_errors(texts, bad_input)),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            byte_fallback=True,
            split_digits=True,
            character_coverage=0.9995,
            required_chars="".join(sorted(set(QUESTION_TAG + ANSWER_TAG))),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            input_sentence_size=_SAMPLE_TEXTS,
            shuffle_input_sentence=True,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if bad_input:
            raise bad_input[0] from None
        raise ConfigError(
            f"cannot train {vocab_size} pieces on these texts: {str(error).rstrip('. ')}. Fix --vocab-size."
        ) from error
    return written.getvalue()


def _noting_errors(texts: Iterator[str], errors: list[HuatuoError]) -> Iterator[str]:
    try:
        yield from texts
    except HuatuoError as error:
        errors.append(error)
        raise
