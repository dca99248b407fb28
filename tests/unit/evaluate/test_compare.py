"""Comparison of models on the same questions, and the paper's tables, from result directories of real runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError, EndpointError, IntegrityError
from megatron_huatuo.evaluate.compare import format_comparison, run_compare
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import EndpointOptions, ModelEndpoint
from megatron_huatuo.evaluate.score_tables import PUBLISHED_PHARMACIST, TableSettings, run_table
from megatron_huatuo.evaluate.significance import holm, mcnemar_exact
from megatron_huatuo.exams.pharmacist import QUESTION_TYPES
from megatron_huatuo.llm.endpoint_settings import PatienceSettings
from tests.unit.evaluate.test_published_exams import FILES

ROOT = Path(__file__).parents[3]
IMPATIENT = PatienceSettings(max_retries=0, backoff_s=0.01)


@pytest.fixture
def sit(endpoint, tmp_path):
    """Let a scripted model sit an exam: right(number) tells which questions it answers rightly."""

    def run(name, files, right, **settings):
        def answers(request):
            prompt = request["messages"][-1]["content"]
            number = int(prompt.split("第")[1].split("题")[0]) if "第" in prompt else 0
            letter = "ABCDE"[number % 5]
            return letter if right(number) else "ABCDE"[(number + 1) % 5]

        endpoint.answers = answers
        model = ModelEndpoint(endpoint.url, name, EndpointOptions(), IMPATIENT)
        run_exam(model, files, tmp_path / name, ExamSettings(**settings))
        return tmp_path / name

    return run


@pytest.fixture
def hundred(tmp_path):
    options = dict(zip("ABCDE", ("甲", "乙", "丙", "丁", "戊"), strict=True))
    records = [{"id": k, "question": f"第{k}题", "option": options, "answer": "ABCDE"[k % 5]} for k in range(100)]
    path = tmp_path / "hundred.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return [path]


@pytest.mark.slow
def test_pairs_are_counted_tested_and_corrected(sit, hundred, tmp_path):
    strong = sit("strong", hundred, lambda k: k < 80)
    middle = sit("middle", hundred, lambda k: 10 <= k < 75)
    weak = sit("weak", hundred, lambda k: k % 2 == 0)
    comparison = run_compare([strong, middle, weak], tmp_path / "out")
    assert comparison == json.loads((tmp_path / "out" / "comparison.json").read_text("utf-8"))
    first, second, third = comparison["pairs"]
    counts = [first[key] for key in ("both_right", "only_a_right", "only_b_right", "both_wrong", "questions")]
    assert counts == [65, 15, 0, 20, 100]
    assert (first["difference"], first["p_value"]) == (0.15, mcnemar_exact(15, 0))
    assert first["interval"][0] > 0.05 and first["interval"][1] < 0.25
    assert [pair["p_value_holm"] for pair in comparison["pairs"]] == holm([p["p_value"] for p in comparison["pairs"]])
    assert (second["a"], second["b"], third["a"], third["b"]) == ("strong", "weak", "middle", "weak")
    assert [round(model["accuracy"], 2) for model in comparison["models"]] == [0.8, 0.65, 0.5]
    text = format_comparison(comparison)
    assert "15.0 points" in text and "differ" in text
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "comparison" and len(manifest["results"]) == 3


@pytest.mark.slow
def test_equal_models_are_not_told_apart(sit, hundred, tmp_path):
    one, other = sit("one", hundred, lambda k: k % 3 == 0), sit("other", hundred, lambda k: k % 3 == 0)
    (pair,) = run_compare([one, other], tmp_path / "out")["pairs"]
    assert (pair["difference"], pair["p_value"], pair["interval"]) == (0, 1, [0, 0])


@pytest.mark.slow
def test_missing_questions_leave_the_pair_and_are_said(sit, hundred, endpoint, tmp_path):
    full = sit("full", hundred, lambda k: True)
    endpoint.answers = lambda request: (400, b"{}", {}) if "第7题" in request["messages"][-1]["content"] else "A"
    holed = ModelEndpoint(endpoint.url, "holed", EndpointOptions(), IMPATIENT)
    run_exam(holed, hundred, tmp_path / "holed", ExamSettings(max_failed=1))
    (pair,) = run_compare([full, tmp_path / "holed"], tmp_path / "out")["pairs"]
    assert (pair["questions"], pair["missing"], pair["accuracy_a"]) == (99, 1, 1)
    with pytest.raises(EndpointError):
        run_exam(holed, hundred, tmp_path / "unfinished")
    with pytest.raises(IntegrityError, match=r"file is missing: .*manifest\.json"):
        run_compare([full, tmp_path / "unfinished"], tmp_path / "out")


@pytest.mark.slow
def test_results_of_other_questions_are_refused_with_what_differs(sit, hundred, tmp_path):
    whole = sit("whole", hundred, lambda k: True)
    part = sit("part", hundred, lambda k: True, limit=60)
    with pytest.raises(DataError, match=r"different question sets: 40 of 100 questions are in one only, such as '\d+'"):
        run_compare([whole, part], tmp_path / "out")
    records = json.loads(hundred[0].read_text("utf-8"))
    records[3]["question"] = "第3题，另一个"
    (tmp_path / "changed.json").write_text(json.dumps(records), encoding="utf-8")
    changed = sit("changed", [tmp_path / "changed.json"], lambda k: True)
    with pytest.raises(DataError, match="question of '3' is '第3题' and '第3题，另一个'"):
        run_compare([whole, changed], tmp_path / "out")
    records[3] |= {"question": "第3题", "answer": "A"}
    (tmp_path / "key.json").write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(DataError, match="answer of '3' is 'D' and 'A'"):
        run_compare([whole, sit("key", [tmp_path / "key.json"], lambda k: True)], tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing to compare: got 1 result directory"):
        run_compare([whole], tmp_path / "out")
    (whole / "replies.jsonl").write_text((whole / "replies.jsonl").read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(IntegrityError, match="wrong size"):
        run_compare([whole, part], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_tool_compares_and_prints_a_table(sit, hundred, tmp_path):
    directories = [sit("one", hundred, lambda k: True), sit("two", hundred, lambda k: k % 2 == 0)]
    compare = [sys.executable, "tools/evaluate.py", "compare", "--results", *directories, "--output", tmp_path / "out"]
    done = subprocess.run(compare, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "50.0 points" in done.stdout, done.stderr
    table = [sys.executable, "tools/evaluate.py", "table", "--results", *directories]
    done = subprocess.run(table, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "MedQA (USMLE)" in done.stdout, done.stderr
    table += ["--exams", "own", "--output", tmp_path / "t.md"]
    done = subprocess.run(table, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "| two | 50.0 [40.4, 59.6] | 50.0 [40.4, 59.6] |" in (tmp_path / "t.md").read_text("utf-8")


def test_benchmark_table_fills_one_row_from_several_directories_and_leaves_no_false_mean(endpoint, tmp_path):
    endpoint.answers = lambda request: "A"
    model = ModelEndpoint(endpoint.url, "ours", EndpointOptions(), IMPATIENT)
    files = {"cmmlu": "cmmlu/anatomy.csv", "medqa": "medqa_us_test.jsonl"}
    for exam, file in files.items():
        run_exam(model, [FILES / file], tmp_path / exam)
    lines = run_table([tmp_path / "cmmlu", tmp_path / "medqa"], exams=["medqa", "cmmlu"]).splitlines()
    assert lines[0].split("  ")[0] == "Model" and "MedQA (USMLE)" in lines[0] and "CMMLU" in lines[0]
    assert lines[1].startswith("ours") and lines[1].count("50.0 [") == 3
    without = run_table([tmp_path / "cmmlu"], exams=["medqa", "cmmlu"]).splitlines()[1]
    assert without.count("50.0 [") == 1  # no mean over an exam that is not there
    with pytest.raises(DataError, match="cmmlu of ours is there twice, the second time in"):
        run_table([tmp_path / "cmmlu", tmp_path / "cmmlu"])
    with pytest.raises(ConfigError, match=r"wrong --output: got x.txt, need a file that ends with .md or .csv"):
        run_table([tmp_path / "cmmlu"], output="x.txt")
    with pytest.raises(ConfigError, match="unknown exam format: got 'sat'"):
        run_table([tmp_path / "cmmlu"], exams=["sat"])


def test_pharmacist_table_marks_published_rows_and_keeps_their_totals(endpoint, tmp_path):
    endpoint.answers = lambda request: "B"
    model = ModelEndpoint(endpoint.url, "ours", EndpointOptions(), IMPATIENT)
    run_exam(model, [FILES / "2023_执业药师_中药.json"], tmp_path / "tcm")
    settings = TableSettings(layout="pharmacist")
    run_table([tmp_path / "tcm"], settings, output=tmp_path / "t.csv")
    rows = [line.split(",") for line in (tmp_path / "t.csv").read_text("utf-8").splitlines()]
    assert len(rows) == 1 + len(PUBLISHED_PHARMACIST) + 1
    assert all(row[0].endswith("(published)") for row in rows[1:-1])
    assert rows[-2][0] == "HuatuoGPT-II(34B) (published)" and rows[-2][-1] == "64.0"
    ours = (tmp_path / "t.csv").read_text("utf-8").splitlines()[-1]
    assert ours.startswith("ours,,,,,,") and ours.endswith(",")  # no pharmacy track, so no mean
    assert "25.0 [4.6, 69.9]" in ours
    assert "read from FreedomIntelligence/HuatuoGPT-II" in run_table([tmp_path / "tcm"], settings)
    assert "(published)" not in run_table([tmp_path / "tcm"], TableSettings("pharmacist", published=False))


def test_published_rows_agree_with_themselves():
    """The mean of the tracks is the last column; the totals lie between the best and the worst question type."""
    for name, row in PUBLISHED_PHARMACIST.items():
        assert len(row) == 2 * (len(QUESTION_TYPES) + 1) + 1, name
        assert row[-1] == pytest.approx((row[4] + row[9]) / 2, abs=0.11), name
        for part, total in ((row[:4], row[4]), (row[5:9], row[9])):
            assert min(part) <= total <= max(part), name
