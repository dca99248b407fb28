"""Byte pair encoding by the compiled kernel, for tokenizers whose every step it repeats: the same ids in less time.

Invariant: a tokenizer with a setting that is not read here is left to its own library, and so is a text that holds more
than pairs to merge (an added token, a character to compose). What a character is to the words of a tokenizer.json, a
letter, a number or white space, is asked of the library itself. No encoder is used before it has given the library's ids
for a sample.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo._ext import load_kernel
from megatron_huatuo.log import get_logger

_log = get_logger(__name__)

# The words of Qwen2 and of Llama 3, which differ in how many digits stand together.
_WORDS = re.compile(
    re.escape(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}")
    + r"(?:\{1,(\d)\})?"
    + re.escape(r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
)
_KIND_PATTERNS = (r"[^\s\p{L}\p{N}]", r"\p{L}", r"\p{N}", r"[^\S\r\n]", r"[\r\n]")  # Kind of csrc/pair_merges.h
_CONTRACTION_LETTERS = "stremvld"
_UNKNOWN = 5
_KNOWN = 0x20000  # characters from here on, rare ideographs most of them, are left to the library

# How tokenizers of the ByteLevel kind write bytes: printable ones as themselves, the others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted({*range(0x100)} - {*_PRINTABLE})
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + k): byte for k, byte in enumerate(_OTHERS)}

# Types of pieces in SentencePiece's ModelProto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE_PIECE = 1, 2, 3, 4, 6
_BPE = 2  # of model_type

# The kernel's encoder is made in a second, and takes less time than a library from here on.
WORTH_A_START_BYTES = 16 << 20
_SAMPLE = (
    "高血压（hypertension）患者每天2次，每次0.5片；BP ≥140/90 mmHg。\r\n\r\n  「三」①",
    "It's DON'T we'Ve I'LL  \t\n 12345678 １２３ x=3.14e-10;  \u3000\u00a0\u200b end ",
    "한국어 日本語テスト العربية עברית हिन्दी ไทย Ελληνικά русский ﬁne e\u0301 \u212b",
    "👩‍⚕️🏥💊 𠀀龘 \u0378\ue000\ufeff<think></s><|endoftext|><reserved_106>",
    "a" * 300 + "苯" * 300 + " " * 300 + "\n" * 300 + "?" * 300,
)


class Library(Protocol):
    """What is asked of a tokenizer, and of its library, to compare its encoder with it."""

    path: Path
    vocab_size: int

    def find_pairs(self) -> PairEncoder | None: ...

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True, eq=False)
class PairEncoder:
    """One tokenizer as the kernel takes it; can be sent to another process.

    name, arguments: the kernel's class. added: texts that only the library encodes. composes: text must be in NFC.
    """

    name: str
    arguments: Mapping[str, Any]
    added: tuple[str, ...] = ()
    composes: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return PairEncoder, (self.name, self.arguments, self.added, self.composes)

    @functools.cached_property
    def _kernel(self) -> Any:
        return getattr(load_kernel(), self.name)(**self.arguments)

    @functools.cached_property
    def _holds_added(self) -> Callable[[str], Any]:
        return re.compile("|".join(map(re.escape, self.added)) if self.added else "(?!)").search

    def encode_batch(
        self, texts: Sequence[str], library: Callable[[Sequence[str]], list[NDArray[np.int32]]]
    ) -> list[NDArray[np.int32]]:
        """Ids of each text, int32 [num_tokens]; library: encodes what is left out."""
        left_out = np.array([self._is_left_out(text) for text in texts], dtype=bool)
        flat, ends, unknown = self._kernel.encode(
            ["" if skip else text for text, skip in zip(texts, left_out, strict=True)]
        )
        found: list[NDArray[np.int32]] = [flat[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]
        numbers = np.flatnonzero(left_out | unknown.astype(bool)).tolist()
        if numbers:
            for number, ids in zip(numbers, library([texts[one] for one in numbers]), strict=True):
                found[number] = ids
        return found

    def _is_left_out(self, text: str) -> bool:
        return (self.composes and not unicodedata.is_normalized("NFC", text)) or self._holds_added(text) is not None


def find_checked_pairs(tokenizer: Library, num_bytes: int) -> PairEncoder | None:
    """The kernel's encoder where it is worth its start, after it has given the library's ids for a sample; else None."""
    if num_bytes < WORTH_A_START_BYTES:
        return None
    pairs = tokenizer.find_pairs()
    if pairs is None:
        _log.info(
            "%s is encoded by its own library: the compiled kernel is missing or does not know it", tokenizer.path
        )
        return None
    # Every 16th run of 64 ids: about 10,000 pieces of all scripts, with whatever they merge to side by side.
    runs = range(0, tokenizer.vocab_size, 16 * 64)
    texts = [*_SAMPLE, *(tokenizer.decode(range(start, min(start + 64, tokenizer.vocab_size))) for start in runs)]
    ids = zip(tokenizer.encode_batch(texts), pairs.encode_batch(texts, tokenizer.encode_batch), strict=True)
    differing = next((text for text, both in zip(texts, ids, strict=True) if not np.array_equal(*both)), None)
    if differing is not None:
        _log.warning(
            "the compiled kernel gives other ids than the library of %s, for one for %r: the library encodes, in two to "
            "three times the time. Please report this.",
            tokenizer.path,
            differing,
        )
        return None
    _log.info("%s is encoded by the compiled kernel, which gave its library's ids for a sample", tokenizer.path)
    return pairs


def byte_level_encoder(content: Mapping[str, Any]) -> PairEncoder | None:
    """For the content of a tokenizer.json; None without the kernel and where it has a setting that the kernel does not know."""
    model, longest_number = content["model"], _longest_number(content.get("pre_tokenizer"))
    normalizer = content.get("normalizer")
    if (
        load_kernel() is None
        or longest_number is None
        or not _only_merges(model)
        or normalizer not in (None, {"type": "NFC"})
    ):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    pieces = [b""] * (max(vocabulary.values(), default=0) + 1)
    table = str.maketrans({character: chr(byte) for character, byte in BYTE_OF_CHARACTER.items()})
    try:
        for piece, number in vocabulary.items():
            pieces[number] = piece.translate(table).encode("latin-1")
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs]
    except (KeyError, ValueError):  # not written as bytes
        return None
    if len({piece for piece in pieces if len(piece) == 1}) < 256:
        return None
    arguments = {
        "pieces": pieces,
        "merges": np.array(merges, np.int32).reshape(-1, 3),
        "kinds": _kinds(normalizer is not None),
        "longest_number": longest_number,
        "prefer_whole": bool(model.get("ignore_merges")),
    }
    # Special tokens are text where text is encoded; the others are read in any text.
    added = tuple(token["content"] for token in content.get("added_tokens", ()) if not token["special"])
    return PairEncoder("ByteLevelEncoder", arguments, added, normalizer is not None)


def sentencepiece_encoder(content: Any) -> PairEncoder | None:
    """For a SentencePiece model's ModelProto; None without the kernel and where it has a setting that the kernel does not know."""
    trainer, normalizer = content.trainer_spec, content.normalizer_spec
    types = [piece.type for piece in content.pieces]
    if (
        load_kernel() is None
        or trainer.model_type != _BPE
        or trainer.treat_whitespace_as_suffix
        or normalizer.precompiled_charsmap
        or normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or not {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE_PIECE}.issuperset(types)
        or types.count(BYTE_PIECE) != 256
        or any(one.type == USER_DEFINED and {" ", "▁"} & {*one.piece} for one in content.pieces)
    ):
        return None
    scores = np.array([piece.score for piece in content.pieces], np.float32)
    byte_ids = {piece.piece: number for number, piece in enumerate(content.pieces) if piece.type == BYTE_PIECE}
    arguments = {
        "pieces": [piece.piece if piece.type == NORMAL else "" for piece in content.pieces],
        "ranks": np.unique(-scores, return_inverse=True)[1].tolist(),
        "user_defined": [piece.piece if piece.type == USER_DEFINED else "" for piece in content.pieces],
        "byte_ids": [byte_ids[f"<0x{byte:02X}>"] for byte in range(256)],
    }
    return PairEncoder("SentencePieceEncoder", arguments)


def _longest_number(pre_tokenizer: Any) -> int | None:
    """Digits that stand together at most, for a pre-tokenizer that splits by _WORDS and then only writes bytes."""
    match pre_tokenizer:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            found = _WORDS.fullmatch(pattern)
            return found and int(found[1] or 1)
    return None


def _only_merges(model: Mapping[str, Any]) -> bool:
    unused = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    known = {"type", "vocab", "merges", "ignore_merges", *unused}
    return model.get("type") == "BPE" and known.issuperset(model) and not any(model.get(name) for name in unused)


def _kinds(composes: bool) -> NDArray[np.uint8]:
    """What each character is to _WORDS, by the library's own Unicode: uint8 [_KNOWN].

    composes: leave out those that Python's Unicode lacks: it cannot tell whether a text with them is in NFC.
    """
    codes = np.array([*range(0xD800), *range(0xE000, _KNOWN)], np.uint32)
    text = codes.tobytes().decode("utf-32-le")
    runs = _split("|".join(f"{pattern}+" for pattern in _KIND_PATTERNS), text)  # neighbours of one kind
    first = "".join(run[0] for run in runs)
    kind_of = {character: kind for kind, one in enumerate(_KIND_PATTERNS) for character in _matched(one, first)}
    kinds = np.full(_KNOWN, _UNKNOWN, np.uint8)
    kinds[codes] = np.repeat([kind_of[character] for character in first], [len(run) for run in runs])
    letters = _matched(f"(?i:[{_CONTRACTION_LETTERS}])", text)
    for number, letter in enumerate(_CONTRACTION_LETTERS, start=1):
        kinds[[ord(character) for character in _matched(f"(?i:{letter})", letters)]] |= number << 3
    if composes:
        kinds[[code for code in range(_KNOWN) if unicodedata.category(chr(code)) == "Cn"]] = _UNKNOWN
    return kinds


def _split(pattern: str, text: str, behavior: str = "isolated") -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    return [
        part for part, _ in pre_tokenizers.Split(Regex(pattern), behavior, behavior == "removed").pre_tokenize_str(text)
    ]


def _matched(pattern: str, text: str) -> str:
    return "".join(_split(pattern, text, "removed"))
