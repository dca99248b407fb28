"""Prove that a published tokenizer, opened by plain transformers, gives the ids that the model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.index.formats.chat_format import CHAT_TEMPLATE, encode_conversations, render
from megatron_huatuo.index.tokenizer import Tokenizer
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.families import get_family
from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.storage.manifest import MANIFEST_NAME, read_json
from megatron_huatuo.storage.records import Conversation, Turn

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


def compare_tokens(tokenizer: Tokenizer, hf_directory: Path, *, allow_mismatch: bool = False) -> TokenParity:
    """Compare what transformers makes of conversations with what training made of them.

    tokenizer: the checkpoint's, which the index was made with.
    allow_mismatch: count and log what differs.
    Raises: IntegrityError naming the first text that differs.
    """
    theirs = _open_with_transformers(hf_directory)
    equal = different = 0
    for values in _CONVERSATIONS:
        turns = tuple(Turn("gpt" if number % 2 else "human", value) for number, value in enumerate(values))
        encoded = encode_conversations([Conversation("", turns)], tokenizer)
        if not len(encoded.kept):  # such a text is never trained on
            continue
        trained = encoded.tokens[:-1].tolist()
        prompt = trained[: int(encoded.sequence_lengths[:-1].sum())]
        for problem in (
            _text_problem(theirs, render(turns), trained),
            _template_problem(theirs, values[:-1], prompt),
        ):
            if problem is None:
                equal += 1
                continue
            if not allow_mismatch:
                raise IntegrityError(f"{problem} ({hf_directory}). Accept the difference with --allow-token-mismatch.")
            get_logger(__name__).warning("accepted: %s", problem)
            different += 1
    return TokenParity(equal, different)


def is_published_by_us(hf_directory: Path) -> bool:
    """Whether a directory's tokenizer is meant to give training's ids: a base model has another chat template, or none."""
    settings = hf_directory / "tokenizer_config.json"
    if not settings.is_file():
        return False
    return (hf_directory / MANIFEST_NAME).is_file() or read_json(settings).get("chat_template") == CHAT_TEMPLATE


def _open_with_transformers(hf_directory: Path) -> Any:
    """As a user opens it. Code that lies in the directory is not run."""
    from transformers import AutoTokenizer

    classes = get_family(load_architecture(hf_directory).family).transformers_classes()
    config = classes[0].from_pretrained(hf_directory) if classes else None
    return AutoTokenizer.from_pretrained(hf_directory, config=config, trust_remote_code=False, local_files_only=True)


def _text_problem(theirs: Any, text: str, trained: list[int]) -> str | None:
    for found in (theirs(text).input_ids, theirs(text, add_special_tokens=False).input_ids):
        if found != trained:
            return f"tokenizer differs from the index: {text!r} gives {found}, need {trained}"
    return None


def _template_problem(theirs: Any, values: tuple[str, ...], prompt: list[int]) -> str | None:
    roles = ("user", "assistant")
    chat = [{"role": roles[number % 2], "content": value} for number, value in enumerate(values)]
    found = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    if found == prompt:
        return None
    return f"chat template gives other ids than training saw: {values} gives {found}, need {prompt}"
