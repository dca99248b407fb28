"""lm-evaluation-harness on the exported tasks: the options that this project picks, and the replies that it reads."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_huatuo.errors import DataError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import GenerationSettings
from megatron_huatuo.evaluate.harness_tasks import export_tasks
from megatron_huatuo.storage.manifest import read_manifest, verify_files

ROOT = Path(__file__).parents[3]
NEW_TOKENS = 12
_RUN = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder, model, template, output, *names = sys.argv[1:]
found = simple_evaluate(
    model="hf", model_args={"pretrained": model, "dtype": "float32"}, tasks=names, device="cpu", batch_size=4,
    task_manager=TaskManager(include_path=folder, include_defaults=False), log_samples=True, bootstrap_iters=0,
    apply_chat_template=template == "template",
)
samples = {
    name: {one["doc"]["id"]: one["filtered_resps"] for one in own} for name, own in found["samples"].items()
}
scores = {name: own.get("acc,none") for name, own in found["results"].items()}
json.dump({"samples": samples, "scores": scores}, open(output, "w"))
"""


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    """120 questions in two languages, with 2 to 5 options; every tenth asks for several letters."""
    texts = ["腹水", "清蛋白", "血电解质", "肝活检", "B超检查"]
    records = []
    for k in range(120):
        question = f"哪项检查有意义{'？' * (k % 7)}第{k}题" if k % 2 else f"Which drug is right, number {k}"
        several = k % 10 == 9
        options = dict(zip("ABCDE", texts[: 5 if several else 2 + k % 4], strict=False))
        kind = "多项选择题" if several else "最佳选择题"
        answer = "AC" if several else "AB"[k % 2]
        records.append(
            {"id": f"q{k}", "question": question, "option": options, "answer": answer, "question_type": kind}
        )
    path = tmp_path_factory.mktemp("exam") / "exam.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def greedy_model(model_directory, tmp_path_factory):
    """The model with a generation_config.json that asks for nothing: the harness obeys what stands there."""
    import shutil

    directory = tmp_path_factory.mktemp("greedy") / "model"
    shutil.copytree(model_directory, directory)
    (directory / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 2, "pad_token_id": 2}')
    return directory


def run_harness(folder, model, template, tmp_path, *names):
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: pip install -e '.[lm-eval]'")
    import os

    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _RUN, folder, model, template, tmp_path / "harness.json", *names]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((tmp_path / "harness.json").read_text("utf-8"))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("scored_text", "few_shot"), [("letter", 0), ("text", 2)])
def test_the_harness_picks_the_same_options(exam, greedy_model, tmp_path, scored_text, few_shot):
    settings = ExamSettings(scoring="loglikelihood", scored_text=scored_text, few_shot=few_shot)
    names = export_tasks([exam], tmp_path / "tasks", settings, NEW_TOKENS)
    assert names == ["huatuo_own_loglikelihood", "huatuo_own_generation"]
    found = run_harness(tmp_path / "tasks", greedy_model, "plain", tmp_path, names[0])
    ours = run_exam(greedy_model, [exam], tmp_path / "out", settings, GenerationSettings(device="cpu"))
    samples, lines = found["samples"][names[0]], read_lines(tmp_path / "out" / "replies.jsonl")
    assert len(lines) == len(samples) == 108
    same = 0
    for line in lines:
        theirs = [total for total, _ in samples[line["id"]]]
        own = [entry[0] for entry in line["loglikelihood"].values()]
        assert own == pytest.approx(theirs, abs=1e-3)
        same += "ABCDE"[theirs.index(max(theirs))] == line["parsed"]
    print(f"the harness picks the same option in {same} of {len(lines)} questions")
    assert same / len(lines) >= 0.99
    assert found["scores"][names[0]] == pytest.approx(ours["accuracy"], abs=1 / 108)


def test_the_harness_generates_the_same_replies(exam, greedy_model, tmp_path):
    names = export_tasks([exam], tmp_path / "tasks", ExamSettings(limit=30), NEW_TOKENS)
    found = run_harness(tmp_path / "tasks", greedy_model, "template", tmp_path, names[-1])
    settings = GenerationSettings(device="cpu", max_new_tokens=NEW_TOKENS)
    run_exam(greedy_model, [exam], tmp_path / "out", ExamSettings(limit=30), settings)
    lines = read_lines(tmp_path / "out" / "replies.jsonl")
    assert {line["id"]: [line["reply"]] for line in lines} == found["samples"][names[-1]]
    assert len({line["reply"] for line in lines}) > 2


def test_tasks_are_what_the_harness_documents_and_their_directory_is_complete(exam, tmp_path):
    command = [sys.executable, "tools/evaluate.py", "export-tasks", "--questions", exam, "--output", tmp_path / "tasks"]
    done = subprocess.run(
        [*command, "--limit", "20", "--max-new-tokens", "9"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["huatuo_own_loglikelihood", "huatuo_own_generation"]
    verify_files(tmp_path / "tasks", read_manifest(tmp_path / "tasks", "harness_tasks"))
    task = yaml.safe_load((tmp_path / "tasks" / "huatuo_own_generation.yaml").read_text("utf-8"))
    assert task["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": 9}
    (path,) = task["dataset_kwargs"]["data_files"].values()
    assert len(read_lines(Path(path))) == 20
    scored = read_lines(tmp_path / "tasks" / "huatuo_own_loglikelihood.jsonl")
    assert all(line["context"].endswith(("答案：", "Answer:")) and line["gold"] in (0, 1) for line in scored)
    with pytest.raises(DataError, match="output directory exists already"):
        export_tasks([exam], tmp_path / "tasks", ExamSettings(), NEW_TOKENS)
