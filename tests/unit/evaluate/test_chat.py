"""The chat tool: history, streaming, one question, and plain streams for input and output."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.chat_model import ChatModel, _Streamer
from megatron_huatuo.evaluate.chat import DISCLAIMER, ChatSession, run_chat
from megatron_huatuo.evaluate.generate import ReplySettings

ROOT = Path(__file__).parents[3]
SHORT = ReplySettings(max_new_tokens=12, device="cpu")


@pytest.fixture(scope="module")
def model(model_directory):
    return ChatModel(model_directory, SHORT)


class Recorder(ChatModel):
    """Notes what is asked, then answers."""

    def __init__(self, model):
        self.__dict__.update(model.__dict__)
        self.asked = []

    def stream(self, messages, on_text):
        self.asked.append(messages)
        return super().stream(messages, on_text)


def test_streamed_text_equals_the_answer_and_history_is_sent(model):
    recorder, screen = Recorder(model), io.StringIO()
    conversation = ChatSession(recorder)
    first = conversation.ask("吗啡中毒怎么办", screen)
    assert screen.getvalue() == first + "\n"
    conversation.ask("剂量呢", screen)
    assert recorder.asked[1] == [
        {"role": "user", "content": "吗啡中毒怎么办"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "剂量呢"},
    ]
    conversation.clear()
    conversation.ask("吗啡中毒怎么办", screen)
    assert recorder.asked[2] == recorder.asked[0]


def test_text_is_shown_as_soon_as_its_characters_are_complete(model):
    import torch

    text, pieces = "纳洛酮。\n  The answer is 😀 A", []
    streamer = _Streamer(model.tokenizer, pieces.append)
    streamer.put(torch.tensor([[5, 6]]))  # the prompt, which is not shown
    for token in model.tokenizer(text, add_special_tokens=False).input_ids:
        streamer.put(torch.tensor([token]))
    streamer.put(torch.tensor([model.tokenizer.eos_token_id]))
    streamer.end()
    assert "".join(pieces) == text
    assert len(pieces) > 5 and all("\ufffd" not in piece for piece in pieces)

    pieces.clear()
    streamer, spoilt = _Streamer(model.tokenizer, pieces.append), ["<0x28>", "<0x0F>", "<0xE5>"]
    for token in [0, *model.tokenizer.convert_tokens_to_ids(spoilt)]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == "\ufffd" * 3, "a byte that fits no character makes its run unreadable"


def test_oldest_turns_are_forgotten_before_the_positions_run_out(model):
    recorder, screen = Recorder(model), io.StringIO()
    conversation = ChatSession(recorder)
    for _ in range(6):
        conversation.ask("肝" * 20, screen)
    assert len(recorder.asked[0]) == 1
    assert 1 <= len(recorder.asked[-1]) < 11
    assert recorder.asked[-1][0]["role"] == "user"


def test_question_longer_than_the_positions_is_named(model):
    with pytest.raises(ConfigError, match="conversation is too long: got"):
        ChatSession(model).ask("肝" * 400, io.StringIO())


def test_one_question_is_answered_after_the_disclaimer(model_directory, model):
    screen = io.StringIO()
    run_chat(model_directory, [], screen, question="吗啡", settings=SHORT)
    answer = model.stream([{"role": "user", "content": "吗啡"}], lambda text: None).text
    assert answer.strip()
    assert screen.getvalue() == f"{DISCLAIMER}\n{answer}\n"


@pytest.mark.slow
def test_tool_answers_lines_of_stdin_until_stop(model_directory, model):
    command = [sys.executable, "tools/chat.py", "--model", model_directory, "--max-new-tokens", "12", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    lines = "吗啡\n\nclear\n".encode() + b"\xff\xfe\n" + "stop\n肝素\n".encode()
    result = subprocess.run(command, cwd=ROOT, env=environment, input=lines, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    output = result.stdout.decode()
    answers = [
        model.stream([{"role": "user", "content": text}], lambda _: None).text for text in ("吗啡", "\ufffd\ufffd")
    ]
    assert output.startswith(DISCLAIMER + "\n")
    assert output.endswith("".join(answer + "\n" for answer in answers))


def test_wrong_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        run_chat(tmp_path, [], io.StringIO(), settings=SHORT)


def test_an_export_of_baichuan2_talks_without_a_flag(baichuan_directory):
    screen = io.StringIO()
    run_chat(baichuan_directory, [], screen, question="头痛？", settings=ReplySettings(max_new_tokens=3, device="cpu"))
    assert screen.getvalue().startswith(DISCLAIMER)
