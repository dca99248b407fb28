"""Log-likelihood scoring and sampled votes on a real (tiny, random) model: exact, and independent of the batch."""

import json
import math

import pytest
import torch

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.evaluate.answering.chat_model import ChatModel, SeededNoise
from megatron_huatuo.evaluate.answering.huggingface import HuggingFaceGenerator
from megatron_huatuo.evaluate.answering.loglikelihood import LoglikelihoodScorer
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import Continued, GenerationSettings, Request

CPU = GenerationSettings(device="cpu", batch_size=4, max_new_tokens=8)
LETTERS = ExamSettings(scoring="loglikelihood")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def one_letter_exam(tmp_path):
    """Six questions of different lengths; the last one asks for several letters."""
    options = {"A": "腹水", "B": "清蛋白", "C": "血电解质", "D": "肝活检"}
    records = [
        {"id": f"q{k}", "question": "哪项有意义" + "？" * k, "option": options, "answer": "ABCD"[k % 4]}
        for k in range(5)
    ]
    records.append({"id": "q5", "question": "有意义的有", "option": options, "answer": "AC"})
    path = tmp_path / "exam.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def plain_likelihood(directory, context, continuation):
    """Token by token with plain transformers, without padding, batch or cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    start = len(tokenizer(context, add_special_tokens=False).input_ids)
    tokens = tokenizer(context + continuation, add_special_tokens=False).input_ids
    total = 0.0
    with torch.inference_mode():
        for place in range(start, len(tokens)):
            logits = model(torch.tensor([tokens[:place]])).logits[0, -1]
            total += float(torch.log_softmax(logits, -1)[tokens[place]])
    return total, len(tokens) - start


@pytest.mark.slow
def test_likelihoods_equal_those_of_plain_transformers_token_by_token(model_directory, one_letter_exam, tmp_path):
    scores = run_exam(model_directory, [one_letter_exam], tmp_path / "out", LETTERS, CPU)
    records = read_lines(tmp_path / "out" / "replies.jsonl")
    assert [record["id"] for record in records] == ["q0", "q1", "q2", "q3", "q4"]
    for record in records[:2]:
        assert record["prompt"].endswith("D. 肝活检\n答案：")
        for letter, (total, tokens, characters) in record["loglikelihood"].items():
            expected, length = plain_likelihood(model_directory, record["prompt"], letter)
            assert (total, tokens, characters) == (pytest.approx(expected, abs=1e-4), length, 1)
        best = max(record["loglikelihood"], key=lambda letter: record["loglikelihood"][letter][0])
        assert record["parsed"] == best and record["correct"] == (best == record["answer"])
    assert (scores["count"], scores["left_out"], scores["unparsed"]) == (5, 1, 0)
    assert {group["accuracy"] for group in scores["by_normalisation"].values()} == {scores["accuracy"]}


@pytest.mark.slow
def test_text_of_options_is_compared_per_token_or_per_character(model_directory, one_letter_exam, tmp_path):
    for normalise, divisor in (
        ("none", lambda entry: 1),
        ("token", lambda entry: entry[1]),
        ("character", lambda entry: entry[2]),
    ):
        settings = ExamSettings(scoring="loglikelihood", scored_text="text", normalise=normalise)
        scores = run_exam(model_directory, [one_letter_exam], tmp_path / "out", settings, CPU)
        records = read_lines(tmp_path / "out" / "replies.jsonl")
        assert records[0]["prompt"] == "请回答下面选择题。\n\n哪项有意义\n答案："
        assert [entry[2] for entry in records[0]["loglikelihood"].values()] == [2, 3, 4, 3]
        for record in records:
            values = {letter: entry[0] / divisor(entry) for letter, entry in record["loglikelihood"].items()}
            assert record["parsed"] == max(values, key=values.get)
        right = sum(record["correct"] for record in records)
        assert right == scores["correct"] == scores["by_normalisation"][normalise]["correct"]
    total, tokens, _ = records[0]["loglikelihood"]["C"]
    expected, length = plain_likelihood(model_directory, records[0]["prompt"], "血电解质")
    assert (total, tokens) == (pytest.approx(expected, abs=1e-4), length) and length > 1


def test_batches_change_nothing_and_a_second_run_computes_nothing(model_directory, tmp_path, monkeypatch):
    items = [Continued("问" * k + "答案：", ("A", "清蛋白", "血电解质和B超检查")) for k in range(1, 8)]
    alone = LoglikelihoodScorer(model_directory, tmp_path / "1", GenerationSettings(device="cpu", batch_size=1)).score(
        items
    )
    scorer = LoglikelihoodScorer(model_directory, tmp_path / "2", GenerationSettings(device="cpu", batch_size=5))
    together = scorer.score(items)
    for one, other in zip(alone, together, strict=True):
        assert [entry[1:] for entry in one] == [entry[1:] for entry in other]
        assert [entry.total for entry in one] == pytest.approx([entry.total for entry in other], abs=1e-4)
    monkeypatch.setattr(scorer, "_run", None)
    assert scorer.score(items) == together


def test_memory_error_halves_the_batch_and_a_long_question_has_no_likelihood(model_directory, tmp_path, monkeypatch):
    scorer = LoglikelihoodScorer(model_directory, tmp_path, GenerationSettings(device="cpu", batch_size=4))
    run, sizes = scorer._run, []

    def short_of_memory(rows):
        sizes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("no memory")
        return run(rows)

    monkeypatch.setattr(scorer, "_run", short_of_memory)
    items = [Continued("肝" * length, ("A", "B")) for length in (3, 500, 4, 5)]
    assert [found is None for found in scorer.score(items)] == [False, True, False, False]
    assert sizes == [6, 2, 2, 2]  # 8 → one item is too long, 6 rows are too many, then batches of one


def test_likelihoods_through_a_template_ask_as_a_chat_does(model_directory, tmp_path):
    settings = GenerationSettings(device="cpu", template="huatuogpt2")
    scorer = LoglikelihoodScorer(model_directory, tmp_path, settings)
    ((found,),) = scorer.score([Continued("哪项有意义", (" A",))])
    expected, _ = plain_likelihood(model_directory, "<问>：哪项有意义\n<答>：", "A")
    assert found.total == pytest.approx(expected, abs=1e-4)
    assert scorer.description["template"] == "huatuogpt2"


def test_exam_of_several_letters_only_is_refused_by_loglikelihood(model_directory, tmp_path):
    record = {"question": "有意义的有", "option": {"A": "腹水", "B": "清蛋白"}, "answer": "AB"}
    (tmp_path / "q.json").write_text(json.dumps([record]))
    with pytest.raises(ConfigError, match="picks one option, but every question asks for several"):
        run_exam(model_directory, [tmp_path / "q.json"], tmp_path / "out", LETTERS, CPU)


@pytest.mark.slow
def test_sampled_reply_depends_on_its_seed_and_not_on_its_neighbours(model_directory, tmp_path):
    requests = [Request("哪项有意义" + "？" * k, seed) for k in range(3) for seed in (None, 1, 2)]
    replies = []
    for size in (1, 4):
        settings = GenerationSettings(device="cpu", batch_size=size, max_new_tokens=12, temperature=1.0)
        generator = HuggingFaceGenerator(model_directory, tmp_path / str(size), settings)
        found = dict(generator.generate(requests))
        replies.append([found[index].text for index in range(len(requests))])
    assert replies[0] == replies[1]
    assert replies[0][0] != replies[0][1] != replies[0][2]


def test_noise_draws_from_the_softmax_of_the_temperature():
    logits, temperature, count = torch.tensor([2.0, 1.0, 0.0, -1.0]), 0.5, 4000
    noise = SeededNoise(list(range(count)), temperature)
    drawn = noise(torch.zeros(count, 1, dtype=torch.long), logits.repeat(count, 1)).argmax(-1).bincount(minlength=4)
    for share, expected in zip((drawn / count).tolist(), torch.softmax(logits / temperature, -1).tolist(), strict=True):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count) + 1e-3
    greedy = SeededNoise([None], temperature)
    assert not greedy.is_needed and greedy(None, logits[None].clone())[0].tolist() == logits.tolist()


def test_named_templates_write_what_their_models_were_trained_on(model_directory):
    turns = [
        {"role": "user", "content": "甲"},
        {"role": "assistant", "content": "乙"},
        {"role": "user", "content": "丙"},
    ]
    expected = {
        "none": "甲\n乙\n丙",
        "huatuogpt2": "<问>：甲\n<答>：乙\n<问>：丙\n<答>：",
        "baichuan2-chat": "<reserved_106>甲<reserved_107>乙<reserved_106>丙<reserved_107>",
        "disc-medllm": "<reserved_102>甲<reserved_103>乙<reserved_102>丙<reserved_103>",
        "qwen-chat": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n甲<|im_end|>\n"
        "<|im_start|>assistant\n乙<|im_end|>\n<|im_start|>user\n丙<|im_end|>\n<|im_start|>assistant\n",
        "chatglm3": "[gMASK]sop<|user|>\n 甲<|assistant|>\n 乙<|user|>\n 丙<|assistant|>",
    }
    for name, text in expected.items():
        assert ChatModel(model_directory, GenerationSettings(device="cpu", template=name)).render(turns) == text, name
    model = ChatModel(model_directory, GenerationSettings(device="cpu", template="huatuogpt"))
    assert model.render(turns).endswith("的回答。<病人>：甲 <HuatuoGPT>：乙<病人>：丙 <HuatuoGPT>：")
    with pytest.raises(ConfigError, match="wrong template: got 'vicuna', need one of auto, none, huatuogpt2"):
        GenerationSettings(template="vicuna")
