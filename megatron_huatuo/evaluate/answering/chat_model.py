"""A model and its tokenizer from a Hugging Face directory, and how a conversation becomes a reply.

Invariant: no code and no pickle of the directory is executed unless `trust_remote_code` says so, nothing is ever
downloaded, and generation is greedy whatever the directory's own settings say. Our own exports never need it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.chat_templates import AUTO_TEMPLATE, named_template
from megatron_huatuo.evaluate.generate import GeneratedReply, ReplySettings
from megatron_huatuo.index.formats.chat_format import CHAT_TEMPLATE
from megatron_huatuo.log import get_logger
from megatron_huatuo.models.families import classes_of_export

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class ChatModel:
    """Model and tokenizer of one directory, and how a conversation becomes token ids."""

    def __init__(self, directory: Path, settings: ReplySettings, *, trust_remote_code: bool = False) -> None:
        """Load both; with `trust_remote_code` also by Python code and pickles of the directory.

        Raises ConfigError naming the directory when that is impossible.
        """
        if not (directory / "config.json").is_file():
            raise ConfigError(f"no Hugging Face directory: {directory} has no config.json. Check --model.")
        self.directory, self.settings = directory, settings
        self.device = _device(settings.device)
        transformers.logging.disable_progress_bar()
        self.tokenizer: Any
        self.model: Any
        try:
            self._load(trust_remote_code)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ConfigError(_why_not_loaded(directory, error)) from error
        self._choose_template(settings.template)
        added = self.tokenizer.added_tokens_decoder.values()  # templates write more of them than those with a role
        special = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        frame = self.render([{"role": "user", "content": "-"}])
        self._split_special_tokens = not any(token in frame for token in special)

    def _choose_template(self, name: str) -> None:
        """The directory's own template, a named one, or none; tokens that end the named one's replies end ours."""
        if name != AUTO_TEMPLATE:
            chosen = named_template(name)
            self.tokenizer.chat_template = chosen.jinja
            ends = [self.tokenizer.convert_tokens_to_ids(token) for token in chosen.stops]
            unknown = self.tokenizer.unk_token_id
            self.eos_token_ids += [end for end in ends if end not in (None, unknown, *self.eos_token_ids)]
            self.model.generation_config.eos_token_id = self.eos_token_ids
        elif self.tokenizer.chat_template is None:
            get_logger(__name__).warning("%s has no chat template: the recipe's <问>：…<答>： is used", self.directory)
            self.tokenizer.chat_template = CHAT_TEMPLATE

    def _load(self, trust_remote_code: bool) -> None:
        model_class: Any = transformers.AutoModelForCausalLM
        common: dict[str, Any] = {"local_files_only": True}
        if (classes := classes_of_export(self.directory)) is not None:
            model_class, common["config"] = classes[1], classes[0].from_pretrained(self.directory)
        common["trust_remote_code"] = trust_remote_code
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.directory, **common)
        # Safetensors only, unless the directory is trusted: a `.bin` file is a pickle.
        self.model = model_class.from_pretrained(
            self.directory,
            dtype=self._dtype(),
            use_safetensors=None if trust_remote_code else True,
            **common,
        )
        self.model.eval().to(self.device)
        self.eos_token_ids = _eos_token_ids(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = self.eos_token_ids[0] if pad is None else pad
        # The directory's own settings may sample or penalise; these replace all of them.
        self.model.generation_config = transformers.GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=self.eos_token_ids, pad_token_id=self.pad_token_id
        )
        self.max_positions = int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 31)

    def _dtype(self) -> Any:
        if self.settings.dtype != "auto":
            return getattr(torch, self.settings.dtype)
        return torch.float32 if self.device.type == "cpu" else "auto"

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation that ends with the user as text, up to the answer's tag; without a template its contents."""
        if self.tokenizer.chat_template is None:
            return "\n".join(message["content"] for message in messages)
        return str(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation that ends with the user, through the chat template, up to the answer's tag.

        messages: [{"role": "user" | "assistant", "content"}…]. `</s>` in a message stays text where the template
        itself holds no special token.
        """
        return self.encode_text(self.render(messages))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text as it stands: nothing is added in front or behind."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=self._split_special_tokens)
        return list(encoded.input_ids)

    def room(self, num_tokens: int) -> int:
        """How many tokens may follow a prompt of this length."""
        return min(self.settings.max_new_tokens, self.max_positions - num_tokens)

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        streamer: BaseStreamer | None = None,
        noise: SeededNoise | None = None,
    ) -> list[GeneratedReply]:
        """Replies to token ids of prompts that all have room for the same number of new tokens; greedy without noise."""
        longest = max(map(len, prompts))
        tokens = torch.full((len(prompts), longest), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[row, longest - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=tokens.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=self.room(longest),
            streamer=streamer,
            logits_processor=None if noise is None else transformers.LogitsProcessorList([noise]),
        )
        return [self._read(row) for row in output[:, longest:].tolist()]

    def _read(self, tokens: list[int]) -> GeneratedReply:
        ends = [index for index, token in enumerate(tokens) if token in self.eos_token_ids]
        kept = tokens[: ends[0]] if ends else tokens
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return GeneratedReply(text, "stop" if ends else "length")

    def stream(self, messages: Sequence[Mapping[str, str]], on_text: Callable[[str], None]) -> GeneratedReply:
        """Answer one conversation and hand over its text piece by piece. Raises ConfigError when it is too long."""
        prompt = self.encode(messages)
        if self.room(len(prompt)) < 1:
            raise ConfigError(
                f"conversation is too long: got {len(prompt)} tokens, need less than {self.max_positions}. Start anew."
            )
        return self.answer([prompt], _Streamer(self.tokenizer, on_text))[0]


class SeededNoise(transformers.LogitsProcessor):
    """Makes greedy search sample: the largest of logits / temperature + Gumbel noise is a draw from their softmax.

    Each row of a batch has noise of its own seed, so that a sampled reply does not depend on its neighbours.
    """

    def __init__(self, seeds: Sequence[int | None], temperature: float) -> None:
        self._temperature = temperature
        self._generators = [None if seed is None else torch.Generator().manual_seed(seed) for seed in seeds]

    @property
    def is_needed(self) -> bool:
        """Whether any row samples."""
        return any(generator is not None for generator in self._generators)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """scores: float [rows, vocabulary]; returns float32 of that shape."""
        noisy = scores.float()
        for row, generator in enumerate(self._generators):
            if generator is not None:
                uniform = torch.rand(scores.shape[1], generator=generator, dtype=torch.float64).clamp_min(1e-300)
                gumbel = -torch.log(-torch.log(uniform))
                noisy[row] = noisy[row] / self._temperature + gumbel.to(noisy.device, noisy.dtype)
        return noisy  # type: ignore[return-value]


class _Streamer(BaseStreamer):
    """Hands over text as soon as its last character is complete; the pieces add up to the reply."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._shown = 0
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._tokens.extend(value.flatten().tolist())
        text = self._text()
        # A character may take several tokens, and a byte that fits none makes its whole run of byte tokens unreadable.
        last = str(self._tokenizer.convert_ids_to_tokens(self._tokens[-1]))
        if not text.endswith("\ufffd") and not _BYTE_TOKEN.fullmatch(last):
            self._show(text)

    def end(self) -> None:
        self._show(self._text())

    def _text(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            self._on_text(text[self._shown :])
            self._shown = len(text)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"wrong device: got {name!r}, need auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} is not there: no CUDA device was found. Use --device cpu.")
    return device


def _eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    named = model.generation_config.eos_token_id
    ids = [] if named is None else [named] if isinstance(named, int) else list(named)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise ValueError("neither generation_config.json nor the tokenizer names an eos token")
    return ids


def _why_not_loaded(directory: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return (
            f"the directory brings its own Python code, which is not executed: {directory}. "
            "If you trust it, add --trust-remote-code."
        )
    return f"cannot load the model: {reason} ({directory}). Export or download it again."
