"""Exam formats: one file makes one, the right one reads each file, and all say what a user must know."""

import json
import re
import sys
from pathlib import Path

import pytest

from megatron_huatuo import exams
from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.evaluate.exam import ExamSettings, run_exam
from megatron_huatuo.evaluate.generate import ModelEndpoint
from megatron_huatuo.exams.exam_formats import exam_format, exam_formats, recognise_format
from megatron_huatuo.exams.questions import read_questions

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs" / "add_an_exam.md"


def blocks_of_the_guide(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def guide_format(tmp_path, monkeypatch):
    """The made-up format of docs/add_an_exam.md, as one more file of the package's folder."""
    folder = tmp_path / "one file"
    folder.mkdir()
    (folder / "first_aid.py").write_text(blocks_of_the_guide("python")[0], encoding="utf-8")
    monkeypatch.setattr(exams, "__path__", [*exams.__path__, str(folder)])
    yield
    sys.modules.pop("megatron_huatuo.exams.first_aid", None)


def test_one_file_makes_a_format_as_the_guide_says(guide_format, endpoint, tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_text(blocks_of_the_guide("json")[0], encoding="utf-8")
    assert recognise_format(path).name == "first_aid"
    endpoint.reply = lambda prompt, number: "(b)"
    scores = run_exam(ModelEndpoint(endpoint.url, "m"), [path], tmp_path / "out", ExamSettings(subset=("burns",)))
    assert (scores["count"], scores["correct"]) == (1, 1)
    assert endpoint.prompts == [blocks_of_the_guide("text")[0].rstrip("\n")]


def test_format_without_its_file_is_not_there(tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_text(blocks_of_the_guide("json")[0], encoding="utf-8")
    assert recognise_format(path).name == "own"
    with pytest.raises(ConfigError, match="unknown exam format: got 'first_aid', need auto, "):
        exam_format("first_aid")


def test_two_formats_of_one_name_are_refused(tmp_path, monkeypatch):
    (tmp_path / "again.py").write_text("from megatron_huatuo.exams.own_layout import OwnLayout as A\nFORMAT = A()\n")
    monkeypatch.setattr(exams, "__path__", [*exams.__path__, str(tmp_path)])
    with pytest.raises(ConfigError, match="two exam formats are called 'own'"):
        exam_formats()
    sys.modules.pop("megatron_huatuo.exams.again")


def test_every_format_says_where_people_get_the_exam():
    for name, entry in exam_formats().items():
        assert entry.name == name and entry.title and entry.language in ("zh", "en")
        assert entry.obtain.endswith(".") and len(entry.obtain) > 20


def test_csv_that_no_format_knows_is_refused_with_its_columns(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("stem,key\nx,A\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"unknown exam format: .*q.csv is CSV with columns stem, key. Name one"):
        read_questions([path])
    path.write_bytes("题干,答案\n".encode("gb18030"))  # is converted
    with pytest.raises(DataError, match=r"q.csv is CSV with columns 题干, 答案"):
        read_questions([path])
    path.write_bytes("stém,key\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"invalid UTF-8: byte 2 \(.*q.csv:1\). If it is GB18030"):
        read_questions([path])
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        read_questions([path])


def test_file_that_two_formats_claim_must_be_named(tmp_path, monkeypatch):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "?", "option": {"A": "x", "B": "y"}, "answer": "A"}) + "\n")
    entries = exam_formats()
    twin = type("Twin", (type(entries["own"]),), {"name": "twin"})()
    claims = {"own": entries["own"], "twin": twin, "triplet": type("Triplet", (type(twin),), {"name": "triplet"})()}
    monkeypatch.setattr("megatron_huatuo.exams.exam_formats.exam_formats", lambda: dict(claims))
    with pytest.raises(DataError, match=r"cannot tell the exam format of .*: it may be twin and triplet"):
        recognise_format(path)
