"""Prove that a published tokenizer, opened by plain transformers, gives the ids that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_huatuo.convert.served_format import ServedFormat
from megatron_huatuo.errors import ConfigError, IntegrityError
from megatron_huatuo.index.formats.chat_format import render
from megatron_huatuo.index.formats.chat_template import read_chat_template
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.families import get_family
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.storage.manifest import MANIFEST_NAME
from megatron_huatuo.storage.records import Conversation, Turn
from megatron_huatuo.storage.targets import TRAINED

# Questions and answers by turns. Text that ends as text does before a role tag, text of two languages, special tokens and
# a role tag within a value.
_CONVERSATIONS = (
    ("高血压患者平时应该注意什么？", "低盐饮食，多运动。"),
    ("What are the symptoms of type 2 diabetes? 请用中文回答。", "口渴、多尿……"),
    ("布洛芬 400 mg，每日 3 次？\n", "  可以 </s><unk> <答>： ½ é\t😀"),
    ("头痛？", "休息。\n", "吃什么药 (乙)?", "Paracetamol!", "多久？", "三天"),
)


class TokenParity(NamedTuple):
    """How many conversations, as text and through the chat template, have the ids of training, and how many have not."""

    equal: int
    different: int


def compare_tokens(served: ServedFormat, hf_directory: Path, *, allow_mismatch: bool = False) -> TokenParity:
    """Compare what transformers makes of conversations with what training made of them.

    served: the checkpoint's format and tokenizer.
    allow_mismatch: count and log what differs.
    Raises: IntegrityError naming the first text that differs.
    """
    theirs = _open_with_transformers(hf_directory)
    equal = different = 0
    for values in _CONVERSATIONS:
        for problem in _problems(theirs, served, values):
            if problem is None:
                equal += 1
                continue
            if not allow_mismatch:
                raise IntegrityError(f"{problem} ({hf_directory}). Accept the difference with --allow-token-mismatch.")
            get_logger(__name__).warning("accepted: %s", problem)
            different += 1
    return TokenParity(equal, different)


def has_template_of(served: ServedFormat, hf_directory: Path) -> bool:
    """Whether a directory's tokenizer is meant to give training's ids: it has training's chat template, or is our export."""
    if (hf_directory / MANIFEST_NAME).is_file():
        return True
    try:
        found = read_chat_template(hf_directory)
    except ConfigError:  # a published one that nobody can render is another
        return False
    return found is not None and found.text == served.template_text


def _open_with_transformers(hf_directory: Path) -> Any:
    """As a user opens it. Code that lies in the directory is not run."""
    from transformers import AutoTokenizer

    classes = get_family(load_architecture(hf_directory).family).transformers_classes()
    config = classes[0].from_pretrained(hf_directory) if classes else None
    return AutoTokenizer.from_pretrained(hf_directory, config=config, trust_remote_code=False, local_files_only=True)


def _problems(theirs: Any, served: ServedFormat, values: tuple[str, ...]) -> Iterator[str | None]:
    """What differs in one conversation: its whole text, then what is served before its last answer. Nothing for a
    conversation that training would have left out, or that names a special token, which a whole text cannot; and no prompt
    where the answer begins with white space that the tokenizer joins to the template, which the index counts."""
    turns = tuple(Turn("gpt" if number % 2 else "human", value) for number, value in enumerate(values))
    encoded = served.form.encode([Conversation("", turns)])
    if not len(encoded.kept):
        return
    trained = encoded.tokens.tolist()
    last_answer = np.flatnonzero(encoded.sequence_modes == TRAINED)[-1]
    prompt = trained[: int(encoded.sequence_lengths[:last_answer].sum())]
    if served.template is None:
        yield _text_problem(theirs, render(turns), trained[:-1])
    elif any(
        text in value for text, token in served.tokenizer.control_tokens.items() if token.is_special for value in values
    ):
        return
    else:
        yield _template_problem(theirs, values, trained)
    if not encoded.counts["answers_joined_to_template"]:
        yield _template_problem(theirs, values[:-1], prompt)


def _text_problem(theirs: Any, text: str, trained: list[int]) -> str | None:
    for found in (theirs(text).input_ids, theirs(text, add_special_tokens=False).input_ids):
        if found != trained:
            return f"tokenizer differs from the index: {text!r} gives {found}, need {trained}"
    return None


def _template_problem(theirs: Any, values: tuple[str, ...], expected: list[int]) -> str | None:
    roles = ("user", "assistant")
    chat = [{"role": roles[number % 2], "content": value} for number, value in enumerate(values)]
    is_asked = len(values) % 2 == 1
    found = theirs.apply_chat_template(chat, add_generation_prompt=is_asked, return_dict=False)
    if found == expected:
        return None
    return f"chat template gives other ids than training saw: {values} gives {found}, need {expected}"
