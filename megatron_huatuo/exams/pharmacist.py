"""Chinese pharmacist licensure, pharmacy and TCM track, in the layout of the project with the exam's four question types.

The prompt is the zero-shot prompt of HuatuoGPT-II's evaluation/eval_qa.py (88ddf9a); the published table gives the accuracy
of each question type and of all questions of a track, and the mean of the two tracks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from megatron_huatuo.exams.exam_format import ExamFormat, ExamQuestion, FileHead, QuestionPlace
from megatron_huatuo.exams.own_layout import as_exam_question
from megatron_huatuo.storage.records import parse_questions

QUESTION_TYPES = {
    "最佳选择题": "Optimal Choice",
    "配伍选择题": "Matched Selection",
    "综合分析选择题": "Integrated Analysis",
    "多项选择题": "Multiple Choice",
}
TRACKS = {"pharmacy": "Pharmacy", "tcm": "TCM"}
_EXAM_NAME = re.compile(r"药师|药学|pharmacist", re.IGNORECASE)
_TCM = re.compile(r"中药|tcm", re.IGNORECASE)


class PharmacistExam(ExamFormat):
    """The question type tells the four parts apart, the source or the file's name the two tracks."""

    name = "pharmacist"
    title = "Pharmacist Licensure Examination"
    mean_over = "subsets"
    obtain = (
        "Hugging Face data sets FreedomIntelligence/2023_Pharmacist_Licensure_Examination-Pharmacy_track and "
        "…-TCM_track (480 questions each, held on 2023-10-22)."
    )
    subsets = TRACKS

    def recognises(self, head: FileHead) -> bool:
        """The layout of the project, one of the four types, and the exam's name in the file's name or the source."""
        record = head.record if isinstance(head.record, dict) else {}
        name = f"{head.path.name} {record.get('source') or ''}"
        return record.get("question_type") in QUESTION_TYPES and _EXAM_NAME.search(name) is not None

    def parse(self, raw: Any, place: QuestionPlace) -> list[ExamQuestion]:
        """The project's record, its track found out."""
        found = []
        for question in parse_questions(raw, str(place)):
            is_tcm = _TCM.search(question.source or "") or _TCM.search(place.path.name)
            track = "tcm" if is_tcm else "pharmacy"
            as_found = as_exam_question(question, self.name)
            found.append(replace(as_found, subset=track, source=question.source or f"{self.title} ({TRACKS[track]})"))
        return found


FORMAT = PharmacistExam()
