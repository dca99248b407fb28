"""The report of a run: one page that opens from disk, whatever the run has behind it."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from megatron_huatuo.config import to_plain
from megatron_huatuo.errors import ConfigError
from megatron_huatuo.inspect.report_data import MOST_POINTS, gather_report
from megatron_huatuo.inspect.report_page import write_report
from megatron_huatuo.train.train_config import TrainConfig
from tests.tool_process import run_tool

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def entry(iteration: int, **others: object) -> dict[str, object]:
    tokens = {"网页": 900 - iteration % 700, "sft": 100 + iteration % 700}
    return {
        "iteration": iteration,
        "consumed_train_samples": 4 * iteration,
        "lm_loss": 5.0 / iteration,
        "loss_by_source": {"网页": 5.0, "sft": 4.0},
        "trained_tokens_by_source": tokens,
        "grad_norm": 1.0,
        "learning_rate": 1e-4,
        "tokens_per_s_per_gpu": 1000.0,
        "mfu": None,
        "seconds": {"forward_backward": 0.1, "optimizer": 0.02},
        "pauses_s": {"save": 0.5},
        "skipped_steps": 0,
        **others,
    }


def make_run(run_dir: Path, blend: str, lines: int) -> Path:
    run_dir.mkdir()
    config = TrainConfig(run_dir=str(run_dir))
    config.data.blend, config.model.preset = blend, "toy"
    (run_dir / "config.yaml").write_text(yaml.safe_dump(to_plain(config), allow_unicode=True))
    (run_dir / "status.json").write_text('{"state": "running", "reason": "", "iteration": 7}')
    text = "".join(json.dumps(entry(i), ensure_ascii=False) + "\n" for i in range(1, lines + 1))
    (run_dir / "log.jsonl").write_text(text + '{"iteration": 8, "lm_lo', "utf-8")
    return run_dir


class Outline(html.parser.HTMLParser):
    """What is in a page: tags with their attributes, balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


@pytest.mark.slow
def test_an_unfinished_run_without_evaluation_has_a_page_of_its_own(tmp_path: Path, sample_blend: Path) -> None:
    """The last line of the log is torn, nothing was saved, nobody examined the model."""
    run_dir = make_run(tmp_path / "run", str(sample_blend), 7)
    text = write_report(run_dir, tmp_path / "report.html").read_text("utf-8")
    page = Outline(text)
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) >= 7
    assert all(chart["role"] == "img" and chart["aria-label"] and chart["tabindex"] == "0" for chart in charts)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "link", "iframe")], "self-contained, no script"
    assert not re.findall(r'(?:src|href)="(?!#)', text) and "url(http" not in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "charts do not share ids"
    assert "running at step 7" in text and "No medical advice" in text and "网页" in text
    assert 'id="exams"' not in text and 'id="parity"' not in text


def test_a_finished_run_shows_flow_saves_and_exam(tmp_path: Path, saved_checkpoint: Path) -> None:
    exam = tmp_path / "exam"
    exam.mkdir()
    scores = {
        "accuracy": 0.5,
        "count": 4,
        "chance": 0.2,
        "unparsed": 1,
        "interval": [0.15, 0.85],
        "by_source": {"<b>": {"count": 4, "accuracy": 0.5}},
    }
    (exam / "scores.json").write_text(json.dumps(scores))
    text = write_report(saved_checkpoint.parents[1], tmp_path / "r.html", evaluations=[exam]).read_text("utf-8")
    for expected in (
        "raw documents",
        "passages",
        "drawn documents",
        "trained tokens",
        "checkpoints kept",
        "15.0% to 85.0%",
    ):
        assert expected in text, expected
    assert "&lt;b&gt;" in text and "<td><b></td>" not in text
    assert 'id="missing"' not in text


@pytest.mark.slow
def test_a_hundred_thousand_lines_are_thinned(tmp_path: Path, sample_blend: Path) -> None:
    run_dir = make_run(tmp_path / "run", str(sample_blend), 100_000)
    began = time.process_time()
    output = write_report(run_dir, tmp_path / "report.html")
    spent_s = time.process_time() - began
    report = gather_report(run_dir, None, [])
    assert len(report.losses[0].x) == MOST_POINTS
    assert output.stat().st_size < 3_000_000
    assert spent_s < 20, f"{spent_s:.1f} s of processor time"


def test_what_is_no_run_or_no_result_is_refused(tmp_path: Path, sample_blend: Path) -> None:
    with pytest.raises(ConfigError, match=r"no training run: .* holds no log, status or checkpoints"):
        gather_report(tmp_path, None, [])
    run_dir = make_run(tmp_path / "run", str(sample_blend), 3)
    with pytest.raises(ConfigError, match=r"no results: .* has no scores\.json"):
        gather_report(run_dir, None, [tmp_path])


def test_a_blend_that_is_gone_is_said(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", str(tmp_path / "deleted"), 3)
    text = write_report(run_dir, tmp_path / "report.html").read_text("utf-8")
    assert "What could not be read" in text and "Loss and gradients" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_browser_draws_every_chart_without_an_error(tmp_path: Path, sample_blend: Path) -> None:
    run_dir = make_run(tmp_path / "run", str(sample_blend), 7)
    page, picture = write_report(run_dir, tmp_path / "report.html"), tmp_path / "report.png"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,2400", f"--screenshot={picture}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 50_000


@pytest.mark.slow
def test_the_tool_writes_the_page(tmp_path: Path, sample_blend: Path) -> None:
    run_dir = make_run(tmp_path / "run", str(sample_blend), 3)
    done = run_tool("report", run_dir, "--output", tmp_path / "r.html")
    assert done.returncode == 0 and f"report: {tmp_path / 'r.html'}" in done.stdout, done.stderr
