"""The exam on a Hugging Face directory: real generation, kill and resume, nothing executed from the directory."""

import json
import time
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.exam import run_exam
from megatron_huatuo.evaluate.generate import GenerationSettings
from tests.tool_process import fork_tool, run_tool

ROOT = Path(__file__).parents[3]
SHORT = GenerationSettings(max_new_tokens=12, batch_size=4, device="cpu")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_exam_writes_contract_files(model_directory, write_questions, tmp_path):
    questions = write_questions(tmp_path / "考 题.jsonl", 9)
    output = tmp_path / "输 出"
    scores = run_exam(model=model_directory, questions=[questions], output=output, generation=SHORT)
    replies = read_lines(output / "replies.jsonl")
    assert [reply["id"] for reply in replies] == [f"q{k}" for k in range(9)]
    for reply in replies:
        assert list(reply)[:6] == ["id", "question_type", "reply", "parsed", "answer", "correct"]
        assert reply["correct"] == (reply["parsed"] == reply["answer"])
    assert scores == json.loads((output / "scores.json").read_text(encoding="utf-8"))
    assert scores["count"] == 9
    assert set(scores["by_question_type"]) == {"最佳选择题", "多项选择题"}
    assert set(scores["by_source"]) == {"pharmacy", "tcm"}
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"replies.jsonl", "scores.json"}
    assert manifest["model"]["kind"] == "huggingface"


@pytest.mark.slow
def test_batched_replies_equal_those_of_one_prompt_at_a_time(model_directory, write_questions, tmp_path):
    questions = write_questions(tmp_path / "q.jsonl", 7)
    replies = []
    for size in (1, 5):
        settings = GenerationSettings(max_new_tokens=24, batch_size=size, device="cpu")
        run_exam(model=model_directory, questions=[questions], output=tmp_path / str(size), generation=settings)
        replies.append([reply["reply"] for reply in read_lines(tmp_path / str(size) / "replies.jsonl")])
    assert replies[0] == replies[1]
    assert any(replies[0])


def test_greedy_reply_equals_plain_transformers(model_directory, write_questions, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    questions = write_questions(tmp_path / "q.jsonl", 1)
    run_exam(model=model_directory, questions=[questions], output=tmp_path / "out", generation=SHORT)
    (reply,) = read_lines(tmp_path / "out" / "replies.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    tokens = tokenizer(f"<问>：{reply['prompt']}\n<答>：", add_special_tokens=False, return_tensors="pt").input_ids
    length = tokens.shape[1]
    with torch.inference_mode():
        for _ in range(12):
            following = model(tokens).logits[0, -1].argmax()
            tokens = torch.cat([tokens, following.view(1, 1)], dim=1)
            if following == tokenizer.eos_token_id:
                break
    assert reply["reply"] == tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


@pytest.mark.slow
def test_second_run_generates_nothing_and_more_questions_only_the_new_ones(
    model_directory, write_questions, tmp_path, monkeypatch
):
    from megatron_huatuo.evaluate.answering import chat_model

    asked = []
    answer = chat_model.ChatModel.answer

    def counting(self, prompts, streamer=None, noise=None):
        asked.append(len(prompts))
        return answer(self, prompts, streamer, noise)

    monkeypatch.setattr(chat_model.ChatModel, "answer", counting)
    for count, expected in ((5, 5), (5, 0), (8, 3)):
        asked.clear()
        questions = write_questions(tmp_path / "q.jsonl", count)
        run_exam(model=model_directory, questions=[questions], output=tmp_path / "out", generation=SHORT)
        assert sum(asked) == expected
        assert len(read_lines(tmp_path / "out" / "replies.jsonl")) == count


@pytest.mark.slow
def test_kill_9_in_the_middle_then_the_same_command_finishes_without_asking_again(
    model_directory, write_questions, tmp_path
):
    import sqlite3

    questions = write_questions(tmp_path / "q.jsonl", 60)
    output = tmp_path / "out"
    command = ["evaluate", "exam", "--model", model_directory, "--questions", questions]
    command += ["--output", output, "--batch-size", "1", "--max-new-tokens", "40", "--device", "cpu"]
    process = fork_tool(tmp_path, *command)
    logged = 0
    deadline = time.monotonic() + 120
    while logged < 3 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
        logged = count_logged(output, sqlite3)
    process.kill()
    process.join()
    before = count_logged(output, sqlite3)
    assert 3 <= before < 60
    assert not (output / "manifest.json").exists()
    assert not (output / "replies.jsonl").exists()
    result = run_tool(*command)
    assert result.returncode == 0, result.stderr
    assert len(read_lines(output / "replies.jsonl")) == 60
    assert count_logged(output, sqlite3) == 60
    assert result.stdout.splitlines()[-1].split()[:3] == ["total", "all", "60"]
    assert not list(output.glob("*.tmp"))


def count_logged(output, sqlite3):
    count = 0
    for path in output.glob("requests-*.sqlite"):
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
                count += connection.execute("SELECT COUNT(done_at) FROM requests").fetchone()[0]
        except sqlite3.OperationalError:
            pass  # not yet created
    return count


def test_changed_weights_are_another_model(model_directory, write_questions, tmp_path):
    import shutil

    from megatron_huatuo.storage.exam_results import directory_fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(model_directory, copy)
    assert directory_fingerprint(copy) == directory_fingerprint(model_directory)
    (copy / "README.md").write_text("a card")
    assert directory_fingerprint(copy) == directory_fingerprint(model_directory)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert directory_fingerprint(copy) != directory_fingerprint(model_directory)


@pytest.mark.slow
def test_prompt_that_fills_the_positions_is_unparsed_and_does_not_cut_others(model_directory, tmp_path):
    def question(name, text):
        return {"id": name, "question": text, "option": {"A": "腹水", "B": "清蛋白"}, "answer": "A"}

    records = [question("short", "哪项有意义"), question("long", "肝" * 400), question("tight", "肝" * 70)]
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"exam": records}, ensure_ascii=False), encoding="utf-8")
    settings = GenerationSettings(max_new_tokens=150, batch_size=8, device="cpu")
    scores = run_exam(model=model_directory, questions=[path], output=tmp_path / "all", generation=settings)
    replies = {reply["id"]: reply for reply in read_lines(tmp_path / "all" / "replies.jsonl")}
    assert replies["long"]["finish_reason"] == "prompt too long"
    assert replies["long"]["parsed"] is None
    assert scores["unparsed"] >= 1
    path.write_text(json.dumps({"exam": records[:1]}, ensure_ascii=False), encoding="utf-8")
    run_exam(model=model_directory, questions=[path], output=tmp_path / "one", generation=settings)
    assert read_lines(tmp_path / "one" / "replies.jsonl")[0]["reply"] == replies["short"]["reply"]


@pytest.mark.slow
def test_memory_error_halves_the_batch_and_loses_nothing(model_directory, write_questions, tmp_path, monkeypatch):
    import torch

    from megatron_huatuo.evaluate.answering import chat_model

    answer, sizes = chat_model.ChatModel.answer, []

    def short_of_memory(self, prompts, streamer=None, noise=None):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("no memory")
        return answer(self, prompts, streamer, noise)

    monkeypatch.setattr(chat_model.ChatModel, "answer", short_of_memory)
    settings = GenerationSettings(max_new_tokens=4, batch_size=8, device="cpu")
    questions = write_questions(tmp_path / "q.jsonl", 9)
    run_exam(model=model_directory, questions=[questions], output=tmp_path / "out", generation=settings)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert [reply["id"] for reply in read_lines(tmp_path / "out" / "replies.jsonl")] == [f"q{k}" for k in range(9)]


def remote_code_directory(model_directory, tmp_path):
    """A directory whose own Python code leaves a trace when it runs."""
    import shutil

    directory, trace = tmp_path / "remote", tmp_path / "executed"
    shutil.copytree(model_directory, directory)
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "own_llama"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(trace)!r}, 'w').close()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return directory, trace


@pytest.mark.slow
def test_code_in_the_directory_runs_only_with_the_flag(model_directory, write_questions, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory, trace = remote_code_directory(model_directory, tmp_path)
    questions = write_questions(tmp_path / "q.jsonl", 1)
    with pytest.raises(ConfigError, match="its own Python code, which is not executed"):
        run_exam(model=directory, questions=[questions], output=tmp_path / "out", generation=SHORT)
    assert not trace.exists()
    command = ["evaluate", "exam", "--model", directory, "--questions", questions]
    command += ["--output", tmp_path / "out", "--max-new-tokens", "3", "--device", "cpu", "--trust-remote-code"]
    trusted = run_tool(*command)
    assert trusted.returncode == 0, trusted.stderr
    assert trace.exists()


def test_an_export_of_baichuan2_sits_the_exam_without_a_flag(baichuan_directory, write_questions, tmp_path):
    questions = write_questions(tmp_path / "q.jsonl", 2)
    command = ["evaluate", "exam", "--model", baichuan_directory, "--questions", questions]
    command += ["--output", tmp_path / "out", "--max-new-tokens", "3", "--device", "cpu"]
    done = run_tool(*command)
    assert done.returncode == 0, done.stderr
    assert "model of type" not in done.stderr and "trust_remote_code" not in done.stderr
    assert len(read_lines(tmp_path / "out" / "replies.jsonl")) == 2


def test_changed_code_of_an_export_is_not_run_and_leaves_no_output(baichuan_directory, write_questions, tmp_path):
    with open(baichuan_directory / "modeling_baichuan.py", "a") as handle:
        handle.write(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    questions = write_questions(tmp_path / "q.jsonl", 1)
    with pytest.raises(ConfigError, match="its own Python code, which is not executed"):
        run_exam(model=baichuan_directory, questions=[questions], output=tmp_path / "out", generation=SHORT)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_refused(model_directory, write_questions, tmp_path):
    import shutil

    directory = tmp_path / "pickled"
    shutil.copytree(model_directory, directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load the model"):
        run_exam(model=directory, questions=[write_questions(tmp_path / "q.jsonl", 1)], output=tmp_path / "out")


def test_directory_without_chat_template_gets_the_recipe_format(model_directory, tmp_path):
    import shutil

    from megatron_huatuo.evaluate.answering.chat_model import ChatModel

    directory = tmp_path / "plain"
    shutil.copytree(model_directory, directory)
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "乙"}]
    messages.append({"role": "user", "content": "丙"})
    plain, own = ChatModel(directory, SHORT), ChatModel(model_directory, SHORT)
    assert plain.encode(messages) == own.encode(messages)
    assert own.tokenizer.decode(own.encode(messages)) == "<问>：甲\n<答>：乙\n<问>：丙\n<答>："


def test_eos_written_in_a_question_stays_text(model_directory):
    from megatron_huatuo.evaluate.answering.chat_model import ChatModel

    model = ChatModel(model_directory, SHORT)
    tokens = model.encode([{"role": "user", "content": "吗啡</s>中毒"}])
    assert model.tokenizer.eos_token_id not in tokens
    assert "</s>" in model.tokenizer.decode(tokens)


def test_two_runs_cannot_write_one_output(model_directory, write_questions, tmp_path):
    from megatron_huatuo.evaluate.answering.replies import output_directory

    questions = write_questions(tmp_path / "q.jsonl", 1)
    with output_directory(tmp_path / "out"), pytest.raises(ConfigError, match="another process writes"):
        run_exam(model=model_directory, questions=[questions], output=tmp_path / "out", generation=SHORT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "wrong max_new_tokens: got 0"),
        ({"batch_size": 0}, "wrong batch_size: got 0"),
        ({"dtype": "int8"}, "wrong dtype: got 'int8'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        GenerationSettings(**settings)


def test_wrong_device_and_directory_are_named(model_directory, write_questions, tmp_path):
    questions = write_questions(tmp_path / "q.jsonl", 1)
    with pytest.raises(ConfigError, match="wrong device: got 'gpu'"):
        settings = GenerationSettings(device="gpu")
        run_exam(model=model_directory, questions=[questions], output=tmp_path / "a", generation=settings)
    with pytest.raises(ConfigError, match="no Hugging Face directory"):
        run_exam(model=tmp_path / "absent", questions=[questions], output=tmp_path / "b")
    with pytest.raises(ConfigError, match="wrong questions: got one path"):
        run_exam(model=model_directory, questions=str(questions), output=tmp_path / "c")
    with pytest.raises(DataError, match="cannot read"):
        run_exam(model=model_directory, questions=[tmp_path / "absent"], output=tmp_path / "d")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        run_exam(model=model_directory, questions=[questions], output=tmp_path / "file")
