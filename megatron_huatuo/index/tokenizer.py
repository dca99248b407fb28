"""SentencePiece models and Hugging Face tokenizer.json files behind one interface, without transformers or torch.

Invariant: text stays text. Nothing is added in front or behind (no bos, no eos), and the text of a special token, such
as `</s>` typed by a user, is encoded letter by letter and never gives its control id. What belongs to the tokenizer
itself stays: one with a dummy prefix (Llama-2) puts it before a text, though not before text that continues another, and
SentencePiece's *user-defined* pieces (`<reserved_106>` of Baichuan2) are ordinary pieces to it.
"""

from __future__ import annotations

import abc
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.index.pair_encoder import (
    BYTE_OF_CHARACTER,
    BYTE_PIECE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    PairEncoder,
    byte_level_encoder,
    sentencepiece_encoder,
)
from megatron_huatuo.storage.lfs_pointer import refuse_pointer
from megatron_huatuo.storage.manifest import sha256_file, write_json

# What a published model directory may hold beside its main tokenizer file, and an export copies along.
_COMPANIONS = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


class ControlToken(NamedTuple):
    """A text that a tokenizer reads as one id, such as `<|im_end|>`, with the white space that it swallows.

    is_special: whether it is read so only where a template writes it; the others, such as `<think>`, are in any text.
    """

    number: int
    is_special: bool = True
    swallows_before: bool = False
    swallows_behind: bool = False


_UNKNOWN_TOKEN = ControlToken(-1)


def _stands_alone(text: str) -> bool:
    """Of a piece that is no special token: whether it can be told from ordinary text, as `<think>` can and a run of line
    breaks cannot, which grows with what follows."""
    return len(text) > 2 and not text.isspace()


class Tokenizer(abc.ABC):
    """Text to ids and back.

    path: the main file. vocab_size: every id is below it. eos_id: end of a document. unk_id: None where the tokenizer
    has no unknown id. files: {name in a Hugging Face directory: file}, what an export copies along.
    """

    path: Path
    vocab_size: int
    eos_id: int
    unk_id: int | None
    files: dict[str, Path]
    pairs: PairEncoder | None = None
    """Encodes in the library's place, once it is set."""

    @cached_property
    def sha256(self) -> str:
        """sha256 of the main file: equal hash, equal ids."""
        return sha256_file(self.path)

    def encode_batch(self, texts: Sequence[str], *, continues: bool = False) -> list[NDArray[np.int32]]:
        """Ids of each text, int32 [num_tokens], on one core.

        continues: each text goes on from another, so a dummy prefix is left out.
        """
        if self.pairs is None:
            return self._encode_by_library(texts, continues)
        return self.pairs.encode_batch(texts, self._encode_by_library)  # it knows no tokenizer with a dummy prefix

    @abc.abstractmethod
    def _encode_by_library(self, texts: Sequence[str], continues: bool = False) -> list[NDArray[np.int32]]:
        """The same by the tokenizer's library."""

    @abc.abstractmethod
    def find_pairs(self) -> PairEncoder | None:
        """The compiled kernel's encoder of this tokenizer, for `pairs`; None where it has none. Takes up to a second."""

    @cached_property
    @abc.abstractmethod
    def control_tokens(self) -> dict[str, ControlToken]:
        """Texts that are one id each where a chat template writes them: {text: token}."""

    @abc.abstractmethod
    def encode_rendered(self, text: str) -> NDArray[np.int32]:
        """Ids of a text in which control tokens count as such, as `apply_chat_template` encodes what it rendered."""

    @abc.abstractmethod
    def token_starts(self, text: str, *, continues: bool = False) -> list[int]:
        """Where each token of a text that `encode_batch` encodes begins, in characters. Slower than ids alone."""

    @cached_property
    def is_prefixed_behind_control(self) -> bool:
        """Whether a text right behind a control token is encoded as a text of its own, dummy prefix included."""
        texts = (text for text, token in self.control_tokens.items() if not token.swallows_behind and "<" in text)
        control = next(texts, None)
        if control is None:
            return False
        found = self.encode_rendered(f"{control}x")[1:].tolist()
        return found != self.encode_batch(["x"], continues=True)[0].tolist()

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. Control ids give no text with SentencePiece, and their name with tokenizer.json."""

    @abc.abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The UTF-8 bytes that each id stands for in a text, [vocab_size]; empty for an id without text."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return [int(token) for token in self.encode_batch([text])[0]]

    def copy_to(self, directory: Path) -> None:
        """Make a directory that holds the files and nothing else; `load_tokenizer` gives the same tokenizer there."""
        directory.mkdir()
        for name, path in self.files.items():
            shutil.copyfile(path, directory / name)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model` (Baichuan2, Yi, Llama-2, and those of train_tokenizer)."""

    def __init__(self, path: Path) -> None:
        import sentencepiece  # 20 ms and a shared library that readers of finished indices do not need

        self.path = path
        self._check_filled(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            refuse_pointer(path)
            raise DataError(f"not a SentencePiece model: {path} ({error}). Check the path.") from error
        self.vocab_size = self._model.vocab_size()
        self.unk_id = self._model.unk_id()
        self.eos_id = self._model.eos_id()
        if self.eos_id < 0:
            raise ConfigError(
                f"tokenizer has no end-of-document id: {path} was trained with eos_id=-1. Train it with one."
            )
        self.files = {"tokenizer.model": path, **_companions(path.parent)}

    @cached_property
    def control_tokens(self) -> dict[str, ControlToken]:
        """Control, unknown and user-defined pieces of the model, and what the settings add to them."""
        found = {
            piece.piece: ControlToken(number, piece.type != USER_DEFINED)
            for number, piece in enumerate(self._content.pieces)
            if piece.type in (UNKNOWN, CONTROL) or (piece.type == USER_DEFINED and _stands_alone(piece.piece))
        }
        for number, token in _added_tokens(self.path.parent / "tokenizer_config.json").items():
            text = token["content"]
            if self._model.piece_to_id(text) == number or number >= self.vocab_size:
                strips = bool(token.get("lstrip")), bool(token.get("rstrip"))
                found[text] = ControlToken(number, found.get(text, _UNKNOWN_TOKEN).is_special, *strips)
        return found

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def encode_rendered(self, text: str) -> NDArray[np.int32]:
        parts = self._control_pattern.split(text)  # text, control token, text, …
        ids = [self.encode_batch(parts[:1])[0]]
        for control, following in zip(parts[1::2], parts[2::2], strict=True):
            token = self.control_tokens[control]
            following = following.lstrip() if token.swallows_behind else following
            ids += [np.array([token.number], np.int32), self.encode_batch([following], continues=True)[0]]
        return np.concatenate(ids)

    def token_starts(self, text: str, *, continues: bool = False) -> list[int]:
        model = self._continuing if continues else self._model
        places = np.cumsum([0, *(len(character.encode("utf-8")) for character in text)])
        bytes_before = [piece.begin for piece in model.encode(text, return_type="proto").pieces]
        return [int(place) for place in np.searchsorted(places, bytes_before, side="right") - 1]

    @staticmethod
    def _check_filled(path: Path) -> None:
        if path.stat().st_size == 0:
            raise DataError(f"not a SentencePiece model: {path} is empty. Check the path.")

    @cached_property
    def _continuing(self) -> Any:
        """The model without its dummy prefix."""
        if not self._model.normalize("x").startswith(("▁", " ")):
            return self._model
        import sentencepiece

        content = self._content
        content.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=content.SerializeToString())

    @property
    def _content(self) -> Any:
        """The model file, taken apart."""
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self.path.read_bytes())  # type: ignore[attr-defined]

    def find_pairs(self) -> PairEncoder | None:
        return sentencepiece_encoder(self._content)

    def _encode_by_library(self, texts: Sequence[str], continues: bool = False) -> list[NDArray[np.int32]]:
        model = self._continuing if continues else self._model
        ids: list[NDArray[np.int32]] = model.encode(list(texts), return_type="numpy", num_threads=1)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([int(token) for token in ids]))

    def token_bytes(self) -> list[bytes]:
        return [
            bytes([int(piece.piece[3:5], 16)])
            if piece.type == BYTE_PIECE
            else b""
            if piece.type in (UNKNOWN, CONTROL)
            else piece.piece.replace("▁", " ").encode()
            for piece in self._content.pieces
        ]


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` (Llama-3, Qwen2.5). The end-of-document token is named by the files beside it.

    Batches use several threads unless TOKENIZERS_PARALLELISM=false.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        self.path = path
        try:
            self._model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            refuse_pointer(path)
            raise DataError(f"not a tokenizer.json: {path} ({error}). Check the path.") from error
        _take_text_as_text(self._model)
        added = self._model.get_added_tokens_decoder()
        self.vocab_size = max(self._model.get_vocab_size(), *(token + 1 for token in added), 0)
        self.eos_id = self._find_eos()
        unknown = getattr(self._model.model, "unk_token", None)
        self.unk_id = None if unknown is None else self._model.token_to_id(unknown)
        self.files = {"tokenizer.json": path, **_companions(path.parent)}

    def _find_eos(self) -> int:
        """By the settings of the tokenizer; else by the model's, which are not part of it and are not copied along."""
        named = self._named_eos()
        if named is not None:
            return named
        path = self.path.parent / "config.json"
        found = _read_object(path).get("eos_token_id")
        first = found[0] if isinstance(found, list) and found else found
        if not isinstance(first, int):
            settings = self.path.parent / "tokenizer_config.json"
            raise ConfigError(
                f"tokenizer has no end-of-document token: need 'eos_token' in {settings}. "
                "Copy that file beside tokenizer.json."
            )
        if self._model.id_to_token(first) is None:
            raise ConfigError(f"eos_token_id {first} of {path} is not in {self.path}. Fix eos_token_id.")
        return first

    def _named_eos(self) -> int | None:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            token = _read_object(self.path.parent / name).get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                number = self._model.token_to_id(token) if isinstance(token, str) else None
                if number is None:
                    path = self.path.parent / name
                    raise ConfigError(f"eos_token {token!r} of {path} is not in {self.path}. Fix eos_token.")
                return int(number)
        return None

    def copy_to(self, directory: Path) -> None:
        super().copy_to(directory)
        if self._named_eos() is None:
            path = directory / "tokenizer_config.json"
            write_json(path, {**_read_object(path), "eos_token": self._model.id_to_token(self.eos_id)})

    @cached_property
    def _continuing(self) -> Any:
        """The model without its dummy prefix."""
        import tokenizers

        # The parts alone first: the whole, with its vocabulary, is megabytes of JSON in every worker.
        found = {name: _part(getattr(self._model, name)) for name in ("normalizer", "pre_tokenizer")}
        parts = {name: _without_dummy_prefix(part) for name, part in found.items()}
        if parts == found:
            return self._model
        model = tokenizers.Tokenizer.from_str(json.dumps(json.loads(self._model.to_str()) | parts))
        _take_text_as_text(model)
        return model

    @cached_property
    def control_tokens(self) -> dict[str, ControlToken]:
        """The added tokens."""
        return {
            one.content: ControlToken(number, one.special, one.lstrip, one.rstrip)
            for number, one in self._model.get_added_tokens_decoder().items()
            if one.special or _stands_alone(one.content)
        }

    def encode_rendered(self, text: str) -> NDArray[np.int32]:
        self._model.encode_special_tokens = False
        try:
            ids = self._model.encode(text, add_special_tokens=False).ids
        finally:
            self._model.encode_special_tokens = True
        return np.array(ids, dtype=np.int32)

    def token_starts(self, text: str, *, continues: bool = False) -> list[int]:
        model = self._continuing if continues else self._model
        return [start for start, _ in model.encode(text, add_special_tokens=False).offsets]

    def find_pairs(self) -> PairEncoder | None:
        return byte_level_encoder(_read_object(self.path))

    def _encode_by_library(self, texts: Sequence[str], continues: bool = False) -> list[NDArray[np.int32]]:
        model = self._continuing if continues else self._model
        encodings = model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([int(token) for token in ids], skip_special_tokens=False))

    def token_bytes(self) -> list[bytes]:
        is_byte_level = '"ByteLevel"' in json.dumps(_part(self._model.decoder))
        added = self._model.get_added_tokens_decoder()
        found = [b""] * self.vocab_size
        for piece, number in self._model.get_vocab(with_added_tokens=True).items():
            if number in added:
                found[number] = piece.encode()
            elif is_byte_level:
                found[number] = bytes(BYTE_OF_CHARACTER[character] for character in piece)
            elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
                found[number] = bytes([int(piece[3:5], 16)])
            else:
                found[number] = piece.replace("▁", " ").encode()
        return found


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """Open a tokenizer: a `.model` or `.json` file, or a Hugging Face directory that holds one.

    In a directory tokenizer.json comes first, because that is what current transformers and servers load.
    Raises: ConfigError when there is none or it has no end-of-document token; DataError when the file is no tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise ConfigError(f"no tokenizer: {path} holds neither tokenizer.json nor tokenizer.model. Check the path.")
        path = found[0]
    if not path.is_file():
        raise ConfigError(f"no tokenizer: {path} does not exist. Check the path.")
    return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


def _take_text_as_text(model: Any) -> None:
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()


def _part(component: Any) -> dict[str, Any] | None:
    """What tokenizer.json says of a normalizer or pre-tokenizer; None where there is none."""
    return None if component is None else json.loads(component.__getstate__())


def _without_dummy_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer of a tokenizer.json that puts nothing in front of a text."""
    if part is None or part["type"] == "Prepend":
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in part:
            kept = [_without_dummy_prefix(member) for member in part[name]]
            part = {**part, name: [member for member in kept if member is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if "add_prefix_space" in part else part


def _companions(directory: Path) -> dict[str, Path]:
    return {name: directory / name for name in _COMPANIONS if (directory / name).is_file()}


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when the file is absent. Raises DataError when it is not a JSON object."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not JSON: {path} ({error}). Fix or remove it.") from error
    if not isinstance(content, dict):
        raise DataError(f"not a JSON object: {path}. Fix or remove it.")
    return content


def _added_tokens(settings: Path) -> dict[int, dict[str, Any]]:
    """{id: token} of `added_tokens_decoder`, {} where there is none. Raises: DataError when it holds something else."""
    found = _read_object(settings).get("added_tokens_decoder") or {}
    try:
        tokens = {int(number): token for number, token in found.items()}
        is_well_formed = all(isinstance(token["content"], str) for token in tokens.values())
    except (AttributeError, KeyError, TypeError, ValueError):
        is_well_formed = False
    if not is_well_formed:
        raise DataError(
            f"wrong added_tokens_decoder: need {{id: {{'content': text, …}}}} in {settings}. Copy the model's own file there."
        )
    return tokens
