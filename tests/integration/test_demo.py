"""The demo is the integration test: one run of every command, as a newcomer types it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "toy_cpu"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # whichever test comes first pays for the demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(runs/demo of a fresh run in a directory with a space and Chinese in its name, what it printed)."""
    directory = tmp_path_factory.mktemp("a demo 演示")
    environment = {**os.environ, "LC_ALL": "C", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLE / "run_demo.py"],
        cwd=directory,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return directory / "runs" / "demo", done.stdout


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_demo_leaves_every_stage_with_its_manifest(demo: tuple[Path, str]) -> None:
    root, _ = demo
    assert {path.name for path in root.iterdir()} >= {
        "corpus",
        "unified",
        "index",
        "blend",
        "train",
        "hf",
        "evaluation",
    }
    for stage in ("corpus", "unified", "blend", "evaluation"):
        assert (root / stage / "manifest.json").is_file(), stage
    assert read_json(root / "train" / "status.json")["state"] == "finished"
    assert (root / "blend" / "schedule.png").stat().st_size > 10_000


def test_demo_draws_every_document_as_often_as_its_epochs_say(demo: tuple[Path, str]) -> None:
    blend = demo[0] / "blend"
    manifest = read_json(blend / "manifest.json")
    source, document = np.load(blend / "order_source.npy"), np.load(blend / "order_document.npy")
    for number, entry in enumerate(manifest["sources"]):
        times = np.bincount(document[source == number], minlength=entry["num_documents"])
        assert (times == {"sft": 24}.get(entry["name"], 8)).all(), entry["name"]


def test_demo_learns_its_sample(demo: tuple[Path, str]) -> None:
    root, _ = demo
    log = [json.loads(line) for line in (root / "train" / "log.jsonl").read_text().splitlines()]
    assert log[0]["lm_loss"] > 6 and log[-1]["lm_loss"] < 0.5
    answers = read_json(root / "evaluation" / "answers.json")
    assert len(answers) == 2
    for answer in answers:
        assert answer["f1"] >= 0.8, answer


def test_demo_prints_its_table_and_the_next_commands(demo: tuple[Path, str]) -> None:
    root, printed = demo
    for text in ("documents in", "pairs kept", "padding", "training loss", "exam score", "chance", "no medical advice"):
        assert text in printed
    scores = read_json(root / "evaluation" / "scores.json")
    assert scores["count"] == len((EXAMPLE / "data" / "exam.jsonl").read_text("utf-8").splitlines())
    assert f"{scores['accuracy']:.1%} of {scores['count']} questions" in printed
    for stage in ("corpus", "unified", "index", "blend", "train", "hf", "evaluation"):
        assert f"runs/demo/{stage}/" in printed
    assert "tools/chat.py" in printed and "tools/curate_corpus.py" in printed


def test_exported_model_loads_without_any_code_of_ours(demo: tuple[Path, str], tmp_path: Path) -> None:
    """A process that cannot import the project loads the directory with plain transformers and answers as the demo did."""
    root, _ = demo
    expected = read_json(root / "evaluation" / "answers.json")[0]
    script = tmp_path / "load.py"
    script.write_text(
        "import sys\n"
        "sys.modules['megatron_huatuo'] = sys.modules['megatron'] = None\n"
        "import transformers\n"
        f"directory, question = {os.fspath(root / 'hf')!r}, {expected['question']!r}\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(directory)\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(directory)\n"
        "ids = tokenizer.apply_chat_template([{'role': 'user', 'content': question}], add_generation_prompt=True,\n"
        "                                    return_tensors='pt', return_dict=True)\n"
        "out = model.generate(**ids, max_new_tokens=96, do_sample=False)[0][ids['input_ids'].shape[1]:]\n"
        "print(tokenizer.decode(out, skip_special_tokens=True).strip())\n",
        "utf-8",
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == expected["answer"]


def test_toy_config_starts_a_run_of_its_own_and_resumes_it(demo: tuple[Path, str], tmp_path: Path) -> None:
    """The documented run, twice: 6 steps, then on to 9; the log holds each line once. The demo itself goes through torchrun."""
    root, _ = demo
    for steps in ("6", "9"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fork_ranks", "2", ROOT / "tools" / "train.py"),
                *("--config", EXAMPLE / "train.yaml", "--run_dir", tmp_path / "run"),
                *("--training.train_iters", steps, "--logging.log_interval", "1"),
            ],
            cwd=root.parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in log] == list(range(1, 10))
    assert read_json(tmp_path / "run" / "status.json") == {
        "state": "finished",
        "reason": "all steps done",
        "iteration": 9,
    }


def test_character_f1_of_hand_counted_strings() -> None:
    specification = importlib.util.spec_from_file_location("run_demo", EXAMPLE / "run_demo.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.character_f1("abc", "abc") == 1.0
    assert module.character_f1("ab", "cd") == 0.0
    assert module.character_f1("aab", "abb") == pytest.approx(2 / 3)  # a and b in common, 3 characters each
