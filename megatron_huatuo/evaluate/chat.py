"""A conversation with a model in the terminal, its history kept, its text shown as it comes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from megatron_huatuo.evaluate.answering.chat_model import ChatModel
from megatron_huatuo.evaluate.generate import ReplySettings

DISCLAIMER = (
    "提示：本模型仅供研究，回答不能代替医生的诊断和建议。"
    " This model is for research; its answers do not replace a doctor's advice."
)
_USAGE = "输入 clear 开始新的对话，输入 stop 结束。 Type clear for a new conversation, stop to leave."
_LEAST_ROOM_TOKENS = 64


class ChatSession:
    """Turns so far with one model."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self._messages: list[dict[str, str]] = []

    def ask(self, question: str, screen: TextIO) -> str:
        """Answer a question in the light of the turns before it, writing the text to `screen` as it comes.

        The oldest turns are forgotten when the conversation outgrows the model's positions.
        Raises: ConfigError when the question alone is too long.
        """
        messages = [*self._messages, {"role": "user", "content": question}]
        least_room = min(_LEAST_ROOM_TOKENS, self._model.settings.max_new_tokens)
        while len(messages) > 1 and self._model.room(len(self._model.encode(messages))) < least_room:
            messages = messages[2:]
        answer = self._model.stream(messages, lambda text: print(text, end="", file=screen, flush=True)).text
        print(file=screen, flush=True)
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def clear(self) -> None:
        """Forget all turns."""
        self._messages = []


def run_chat(
    model: str | Path,
    lines: Iterable[str],
    screen: TextIO,
    *,
    question: str | None = None,
    settings: ReplySettings | None = None,
    trust_remote_code: bool = False,
    prompt: str = "",
) -> None:
    """Answer `question`, or every line of `lines` until "stop" or the end.

    prompt: shown before each line is read (a terminal's "> ").
    Raises: ConfigError when the model cannot be loaded.
    """
    print(DISCLAIMER, file=screen, flush=True)
    conversation = ChatSession(ChatModel(Path(model), settings or ReplySettings(), trust_remote_code=trust_remote_code))
    if question is not None:
        conversation.ask(question, screen)
        return
    print(_USAGE, file=screen, flush=True)
    print(prompt, end="", file=screen, flush=True)
    for line in lines:
        text = line.strip()
        if text == "stop":
            return
        if text == "clear":
            conversation.clear()
        elif text:
            conversation.ask(text, screen)
        print(prompt, end="", file=screen, flush=True)
