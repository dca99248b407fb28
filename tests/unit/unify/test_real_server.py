"""A real OpenAI-compatible server from a package (`transformers serve`), with a real tokenizer and a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_huatuo.errors import EndpointError
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.unify import PatienceSettings, QualitySettings, SamplingSettings, unify
from megatron_huatuo.unify.writers.writer_prompts import load_prompts
from megatron_huatuo.unify.writers.writer_styles import QUESTION_ANSWER, load_styles
from tests.ports import free_port
from tests.unit.unify.conftest import make_documents

SERVE = Path(sys.executable).with_name("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVE.exists(), reason="the command `transformers` is not installed"),
    pytest.mark.skipif(find_spec("fastapi") is None, reason="transformers[serving] is not installed"),
]

# Run apart from the tests: it needs torch, they do not. A third of the vocabulary ends a reply, so replies are short.
MAKE_MODEL = """
import sys
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
folder, text = sys.argv[1:]
tokenizer = Tokenizer(models.BPE(byte_fallback=True))
tokenizer.pre_tokenizer = pre_tokenizers.Split("\\n", "isolated")
trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)])
tokenizer.train_from_iterator([open(text, encoding="utf-8").read()], trainer)
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
fast.chat_template = "{% for m in messages %}<s>{{ m['content'] }}\\n{% endfor %}"
fast.save_pretrained(folder)
torch.manual_seed(1)
size = len(fast)
config = LlamaConfig(vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     max_position_embeddings=4096, bos_token_id=0, eos_token_id=1)
model = LlamaForCausalLM(config)
model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[1, *range(size - size // 3, size)], do_sample=True)
model.save_pretrained(folder)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(base URL, model name, folder) of a running server."""
    folder = tmp_path_factory.mktemp("model")
    text = folder / "text.txt"
    text.write_text("".join(row["title"] + row["text"] for row in make_documents(40)), "utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", MAKE_MODEL, str(folder), str(text)], check=True, env=environment, timeout=300)
    port = free_port()
    log = open(folder / "server.log", "wb")  # noqa: SIM115
    process = subprocess.Popen([str(SERVE), "serve", str(folder), "--device", "cpu", "--port", str(port)],
                               stdout=log, stderr=log, env=environment)  # fmt: skip
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}/health", folder / "server.log")
        yield f"http://127.0.0.1:{port}/v1", str(folder), folder
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline_s = time.monotonic() + 240
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


def test_a_run_against_a_real_server_is_exact_to_the_token(served, tmp_path):
    base_url, model, folder = served
    documents = tmp_path / "d.jsonl"
    documents.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_documents(6)), "utf-8")
    settings = {
        "backend": "openai", "base_url": base_url, "model": model, "max_concurrency": 2,
        "patience": PatienceSettings(request_timeout_s=120, max_retries=1, max_failures_in_a_row=2),
        "sampling": SamplingSettings(temperature=1.0, max_question_tokens=64, max_answer_tokens=64),
        "quality": QualitySettings(min_answer_characters=1, min_faithfulness=0, min_coverage=0, check_numbers=False),
    }  # fmt: skip
    report = unify([documents], tmp_path / "out", **settings)
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert report["documents"] == 6 == report["pairs"] + report["rejected"] and report["pairs"] >= 1
    assert (
        ledger["replies_with_estimated_tokens"] == 0 == ledger["requests_without_reply"] and not ledger["failed_tries"]
    )
    # Every document costs one or two questions; count those prompts with the tokenizer itself.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sent = prompts_sent(tmp_path / "out.requests" / "known.sqlite")
    counted = [len(tokenizer.encode(f"<s>{question_prompt(row)}\n").ids) for row in make_documents(6)]
    assert set(counted) <= set(sent), "the endpoint counts other tokens than its tokenizer"
    assert ledger["prompt_tokens"] == sum(sent) and ledger["requests"] == len(sent)
    again = unify([documents], tmp_path / "out", **settings)
    assert again == report and read_json(tmp_path / "out" / "ledger.json")["this_run"]["requests"] == 0
    assert len(list(read_jsonl(tmp_path / "out" / "conversations.jsonl"))) == report["pairs"]


def test_what_a_real_server_refuses_is_told(served, write_documents, tmp_path):
    base_url, _, _ = served
    with pytest.raises(EndpointError, match=r"HTTP 400: Server is pinned to .*; requested 'other'"):
        unify([write_documents(1)], tmp_path / "out", backend="openai", base_url=base_url, model="other",
              patience=PatienceSettings(max_failures_in_a_row=1))  # fmt: skip


def question_prompt(row: dict) -> str:
    from megatron_huatuo.storage.records import parse_document

    return load_styles(load_prompts())[QUESTION_ANSWER]["zh"].ask_question(parse_document(row, ""))


def prompts_sent(path: Path) -> list[int]:
    import sqlite3

    with sqlite3.connect(path) as connection:
        return [count for (count,) in connection.execute("SELECT prompt_tokens FROM requests")]
