"""200 real PubMed abstracts through curation and unification, with planted duplicates, contamination and damage."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from megatron_huatuo.corpus import CurationSettings, curate
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.unify import unify

ABSTRACTS = Path(__file__).parents[4] / "shared" / "data" / "pubmed_abstracts_200.jsonl"
pytestmark = pytest.mark.skipif(not ABSTRACTS.is_file(), reason=f"real abstracts are not here: {ABSTRACTS.name}")


def plant(folder):
    """The abstracts, and 60 records with known fates: (file, exam file, {id: reason})."""
    choose = random.Random(11)
    abstracts = [line.record for line in read_jsonl(ABSTRACTS)]
    long_ones = [row for row in abstracts if 900 < len(row["text"]) < 2500]
    chosen = choose.sample(long_ones, 60)
    planted, fates = [], {}
    for number, row in enumerate(chosen[:20]):  # one word in 40 changed
        words = row["text"].split()
        for position in range(choose.randrange(40), len(words), 40):
            words[position] = "altered"
        planted.append({**row, "id": f"near-{number}", "text": " ".join(words)})
        fates[f"near-{number}"] = "near-duplicate"
    for number, row in enumerate(chosen[20:40]):  # the same words, other white space
        planted.append({**row, "id": f"exact-{number}", "text": row["text"].replace(" ", "  \n ", 5)})
        fates[f"exact-{number}"] = "exact duplicate"
    questions = []
    for number, row in enumerate(chosen[40:60]):  # a new text with 15 words of an exam question inside
        words = row["text"].split()
        questions.append(
            {"id": f"q{number}", "question": " ".join(words[20:35]), "option": {"A": "yes", "B": "no"}, "answer": "A"}
        )
    fresh = "A report on the visit of number {}: in the ward, one read aloud that {} and then went on to other business of the day."
    for number, question in enumerate(questions):
        planted.append(
            {
                "id": f"leak-{number}",
                "source": "web",
                "language": "en",
                "text": fresh.format(number, question["question"]),
            }
        )
        fates[f"leak-{number}"] = "contamination"
    for row in chosen[40:60]:
        fates[row["id"]] = "contamination"
    path, exam = folder / "planted.jsonl", folder / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in abstracts + planted), "utf-8")
    exam.write_text("".join(json.dumps(row) + "\n" for row in questions), "utf-8")
    return path, exam, fates


def test_planted_cases_are_found_and_every_document_is_accounted_for(tmp_path):
    path, exam, fates = plant(tmp_path)
    settings = CurationSettings(max_words_en=1000, exam=(str(exam),))
    report = curate([path], tmp_path / "out", settings=settings)
    rows = [line.record for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    found = {row["id"]: row["reason"].split(":")[0] for row in rows}
    right = {name for name, reason in found.items() if fates.get(name) == reason}
    precision, recall = len(right) / len(found), len(right) / len(fates)
    print(f"planted {len(fates)}, found {len(found)}: precision {precision:.3f}, recall {recall:.3f}")
    assert report["documents_in"] == 260 == report["documents_out"] + report["rejected"]
    assert recall >= 0.98 and precision >= 0.98
    assert {row["id"] for row in rows} | {
        line.record["id"] for line in read_jsonl(tmp_path / "out" / "documents.jsonl")
    } == {line.record["id"] for line in read_jsonl(path)}


@pytest.mark.slow
def test_every_abstract_becomes_a_pair_or_a_named_rejection(tmp_path):
    curate([ABSTRACTS], tmp_path / "corpus")
    report = unify([tmp_path / "corpus" / "documents.jsonl"], tmp_path / "pairs")
    pairs = [line.record for line in read_jsonl(tmp_path / "pairs" / "conversations.jsonl")]
    rejected = [line.record for line in read_jsonl(tmp_path / "pairs" / "rejected.jsonl")]
    assert {row["provenance"]["document"] for row in pairs} | {row["id"].split("#")[0] for row in rejected} == {
        line.record["id"] for line in read_jsonl(ABSTRACTS)
    }
    assert report["documents"] == len(pairs) + len(rejected) >= 200
    assert len(rejected) <= 2, [row["reason"] for row in rejected]


def test_the_lexicon_tells_medicine_from_physics(tmp_path):
    """PubMed has both; the titles decide here what is what."""
    medical = (
        "patient",
        "therap",
        "clinical",
        "cancer",
        "disease",
        "hospital",
        "surg",
        "vaccin",
        "health",
        "infection",
    )
    physics = ("lattice", "quantum", "plasma sheath", "friction", "solitons", "kink", "granular", "spin", "turbulence")
    curate([ABSTRACTS], tmp_path / "out", settings=CurationSettings(max_words_en=1000, lexicon="starter"))
    kept = {line.record["id"] for line in read_jsonl(tmp_path / "out" / "documents.jsonl")}
    rows = [line.record for line in read_jsonl(ABSTRACTS)]
    doctors = [row["id"] for row in rows if any(word in row["title"].lower() for word in medical)]
    physicists = [
        row["id"] for row in rows if any(word in row["title"].lower() for word in physics) and row["id"] not in doctors
    ]
    assert len(doctors) >= 20 and len(physicists) >= 5
    assert sum(name in kept for name in doctors) >= 0.85 * len(doctors)
    assert sum(name in kept for name in physicists) <= 0.1 * len(physicists)
