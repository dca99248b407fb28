"""Unification end to end, without a model."""

from __future__ import annotations

import asyncio
import json

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.llm.request_log import Reply, RequestLog, peek
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json, read_manifest, verify_files
from megatron_huatuo.storage.pairs import parse_conversations
from megatron_huatuo.storage.records import Document
from megatron_huatuo.unify import QualitySettings, unify
from megatron_huatuo.unify.input_documents import Task
from megatron_huatuo.unify.output_preview import display_width, side_by_side, wrap
from megatron_huatuo.unify.run_shard import in_order
from megatron_huatuo.unify.writers.writer_prompts import load_prompts
from megatron_huatuo.unify.writers.writer_styles import QUESTION_ANSWER, load_styles
from megatron_huatuo.unify.writers.writer_template import template_question
from tests.unit.unify.conftest import SUBJECTS, make_documents


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def test_every_document_becomes_a_pair_or_a_rejection(tmp_path):
    records = make_documents(10)
    records[3]["text"] = "很抱歉，我无法提供这方面的信息，请咨询医生。"
    report = unify([write(tmp_path / "d.jsonl", records)], tmp_path / "out")
    kept = [parse_conversations(line.record, "")[0] for line in read_jsonl(tmp_path / "out" / "conversations.jsonl")]
    rejected = [line.record for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert [pair.id for pair in kept] == [f"d{index}" for index in range(10) if index != 3]
    assert [(row["id"], row["reason"], row["line"]) for row in rejected] == [("d3", "refusal: 很抱歉", 4)]
    assert (report["documents"], report["pairs"], report["rejected"]) == (10, 9, 1)
    assert kept[0].source == "books" and kept[1].source == "web"
    assert kept[1].turns[1].value == records[1]["text"] and "糖尿病" in kept[1].turns[0].value
    assert report["examples"]["refusal"][0]["id"] == "d3"
    manifest = read_manifest(tmp_path / "out", "unified")
    verify_files(tmp_path / "out", manifest)
    assert set(manifest["files"]) == {"conversations.jsonl", "rejected.jsonl", "ledger.json", "report.json"}


def test_provenance_leads_to_the_file_and_offset_of_the_passage(tmp_path):
    path = write(tmp_path / "d.jsonl", make_documents(3))
    unify([path], tmp_path / "out")
    for line in read_jsonl(tmp_path / "out" / "conversations.jsonl"):
        origin = line.record["provenance"]
        with open(origin["file"], "rb") as handle:
            handle.seek(origin["offset"])
            assert json.loads(handle.readline())["id"] == line.record["id"] == origin["passage"]


def test_the_origin_given_by_curation_is_kept(tmp_path):
    record = {
        **make_documents(1)[0],
        "metadata": {"origin": {"document": "book", "file": "b.jsonl", "line": 7, "offset": 99}},
    }
    unify([write(tmp_path / "d.jsonl", [record])], tmp_path / "out")
    (line,) = read_jsonl(tmp_path / "out" / "conversations.jsonl")
    assert {"document": "book", "file": "b.jsonl", "line": 7, "offset": 99}.items() <= line.record["provenance"].items()


def test_near_duplicate_pairs_are_rejected_and_the_first_stays(tmp_path):
    passage = "".join(
        f"{subject}患者应按{index}级要求随访，记录{subject}的变化。" for index, subject in enumerate(SUBJECTS)
    )
    records = make_documents(4)
    for index, record in enumerate(records[1:3], start=1):
        record.update(title="随访要求", text=passage.replace("痛风患者", "痛风病人") if index == 2 else passage)
    report = unify([write(tmp_path / "d.jsonl", records)], tmp_path / "out")
    ids = [line.record["id"] for line in read_jsonl(tmp_path / "out" / "conversations.jsonl")]
    rejected = [line.record for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert ids == ["d0", "d1", "d3"]
    assert [(row["id"], row["reason"], row["line"]) for row in rejected] == [("d2", "near-duplicate pair: of d1", 3)]
    assert report["pairs"] == 3 and report["rejected_by_reason"] == {"near-duplicate pair": 1}
    assert report["by_source"]["books"]["rejected"] == {"near-duplicate pair": 1}
    off = QualitySettings(near_duplicate_similarity=1.1)
    assert unify([tmp_path / "d.jsonl"], tmp_path / "all", quality=off)["pairs"] == 4


def test_equal_input_gives_equal_bytes_and_replaces_its_own_output(tmp_path):
    path = write(tmp_path / "d.jsonl", make_documents(8))
    files = ("conversations.jsonl", "rejected.jsonl", "report.json", "ledger.json")
    unify([path], tmp_path / "out")
    first = [(tmp_path / "out" / name).read_bytes() for name in files]
    unify([path], tmp_path / "out", max_concurrency=1)
    assert first == [(tmp_path / "out" / name).read_bytes() for name in files]


def test_files_of_somebody_else_are_never_replaced(tmp_path):
    path = write(tmp_path / "d.jsonl", make_documents(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="output exists and is not a directory of kind 'unified'"):
        unify([path], tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_bad_lines_stop_the_run_or_are_counted(tmp_path):
    path = tmp_path / "d.jsonl"
    good = [json.dumps(record, ensure_ascii=False) for record in make_documents(3)]
    path.write_text("\n".join([good[0], "{torn", good[1], json.dumps({"id": "x"}), good[2], ""]), "utf-8")
    with pytest.raises(DataError, match=r"malformed JSON.*d\.jsonl:2"):
        unify([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = unify([path], tmp_path / "out", max_bad_lines=2)
    assert report["pairs"] == 3 and sum(report["bad_lines"].values()) == 2
    rejected = [line.record for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert [(row["id"], row["line"]) for row in rejected] == [(None, 2), (None, 4)]


@pytest.mark.parametrize("name", ["d.parquet", "d.csv", "d.xml.gz", "d.json"])
def test_files_that_are_not_lines_of_documents_are_named_with_what_makes_them(name, tmp_path):
    (tmp_path / name).write_bytes(b" [\n" + json.dumps(make_documents(1)[0]).encode() + b"]")
    with pytest.raises(
        DataError, match=r"documents are not JSON Lines: got .*Make them with tools/curate_corpus.py --input"
    ):
        unify([tmp_path / name], tmp_path / "out", backend="template", max_bad_lines=99)


def test_no_pair_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nothing left: 0 documents in"):
        unify([write(tmp_path / "d.jsonl", [])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "oracle"}, "wrong --backend: got 'oracle', need one of template, openai"),
        ({"preview": -1}, "wrong --preview: got -1, need 0 or more"),
        ({"backend": "openai"}, "needs --base-url and --model"),
        ({"backend": "openai", "base_url": "http://h/v1", "model": "m", "language": "fr"}, "wrong --language: got 'fr'"),
        ({"backend": "openai", "base_url": "http://h/v1", "model": "m", "api_key_env": "HUATUO_NOT_SET"}, "HUATUO_NOT_SET is empty"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        unify([write(tmp_path / "d.jsonl", make_documents(1))], tmp_path / "out", **settings)


@pytest.mark.parametrize(
    ("title", "text", "language", "origin", "question"),
    [
        (None, "心力衰竭是常见病，需要治疗。另一句。", "zh", {}, "请具体说明：心力衰竭是常见病，需要治疗……"),
        ("痛风怎么办？", "痛风是代谢病。", "zh", {}, "痛风怎么办？"),
        ("痛风", "痛风是代谢病。", "zh", {"parts": 2}, "关于“痛风”，请具体说明：痛风是代谢病……"),
        (None, "Gout is a disease. It hurts.", "en", {}, "Please explain in detail: Gout is a disease ..."),
    ],
)
def test_template_questions(title, text, language, origin, question):
    assert template_question(Document("a", "s", language, text, title, {"origin": origin})) == question


def test_prompts_carry_version_and_hash_and_can_be_replaced(tmp_path):
    bundled = load_prompts()
    assert set(bundled) == {"zh", "en"} and bundled["zh"].sha256 != bundled["en"].sha256
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "version: 7\nlanguage: en\nquestion: 'Q {text}'\nanswer: 'A {question} | {text}'\nreply: 'R {question}'\n"
        "check: '{text}{question}{answer}'\ncheck_reply: '{question}{answer}'\n"
    )
    replaced = load_prompts([str(mine)])
    assert replaced["zh"] == bundled["zh"] and replaced["en"].version == 7
    document = Document("a", "s", "en", "braces {question} {title} stay")
    assert (
        load_styles(replaced)[QUESTION_ANSWER]["en"].ask_answer(document, "why {text}?")
        == "A why {text}? | braces {question} {title} stay"
    )


GOOD_PROMPTS = {
    "version": 1, "language": "en", "question": "{text}", "answer": "{text}{question}", "reply": "{question}",
    "check": "{text}{question}{answer}", "check_reply": "{question}{answer}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "wrong keys in prompts"),
        ({"language": "fr"}, "wrong language of prompts: got 'fr'"),
        ({"question": "Q"}, "prompt 'question' lacks {text}"),
        ({"answer": "{text}"}, "prompt 'answer' lacks {question}"),
        ({"check": "{text}{question}"}, "prompt 'check' lacks {answer}"),
    ],
)
def test_wrong_prompts_are_refused(change, message, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps({**GOOD_PROMPTS, **change}))
    with pytest.raises(ConfigError, match=message):
        load_prompts([str(path)])
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="cannot read prompts"):
        load_prompts([str(path)])


def test_ordered_map_keeps_order_and_bounds_what_is_in_flight():
    running, most = 0, 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (7 * item % 5))
        running -= 1
        return item * item

    async def collect() -> list[tuple[int, int]]:
        return [pair async for pair in in_order(work, range(50), 6)]

    assert asyncio.run(collect()) == [(item, item * item) for item in range(50)] and most <= 6


def test_ordered_map_raises_the_first_error_and_leaves_no_task():
    async def work(item: int) -> int:
        await asyncio.sleep(0.001)
        if item == 3:
            raise ValueError("three")
        return item

    async def collect() -> int:
        with pytest.raises(ValueError, match="three"):
            async for _ in in_order(work, range(50), 6):
                pass
        return len(asyncio.all_tasks())

    assert asyncio.run(collect()) == 1


def test_request_log_knows_replies_unanswered_requests_and_failures(tmp_path):
    log = RequestLog(tmp_path / "log.sqlite")
    log.note_sent("a", 0, "m")
    log.note_sent("b", 0, "m")
    log.note_sent("c", 0, "m")
    log.note_reply("a", 0, Reply("text", "stop", 3, 4))
    log.note_unpaid("c", 0)
    log.note_failure("HTTP 500")
    log.note_failure("HTTP 500")
    log.close()
    log = RequestLog(tmp_path / "log.sqlite")
    assert log.find("a", 0) == Reply("text", "stop", 3, 4) and log.find("a", 1) is None and log.find("b", 0) is None
    (totals,), failures = log.sums()
    assert (totals.replies, totals.unanswered, totals.prompt_tokens, totals.completion_tokens) == (1, 1, 3, 4)
    assert failures == {"HTTP 500": 2} and peek(log.path) == log.sums() and peek(tmp_path / "none") == ([], {})
    log.close()


def test_a_file_that_is_no_request_log_is_refused(tmp_path):
    (tmp_path / "out.requests").mkdir()
    (tmp_path / "out.requests" / "known.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match=r"cannot use the request log.*known\.sqlite"):
        unify([write(tmp_path / "d.jsonl", make_documents(1))], tmp_path / "out", backend="openai",
              base_url="http://127.0.0.1:9/v1", model="m")  # fmt: skip


def test_preview_columns_line_up_for_wide_characters():
    task = Task("a", "web", {}, Document("a", "web", "zh", "血压升高mg" * 20))
    rows = side_by_side(task, None, width=60).split("\n")
    assert all(display_width(row[: row.index("│")]) == 29 for row in rows[1:])
    assert list(wrap("血压ab", 4)) == ["血压", "ab"]
    assert list(wrap("take it with overlongwords", 10)) == ["take it", "with", "overlongwo", "rds"]


def test_the_report_counts_sources_that_only_lose(tmp_path):
    records = make_documents(2)
    records[0]["text"] = "抱歉，没有内容可以提供给你。"
    report = unify([write(tmp_path / "d.jsonl", records)], tmp_path / "out")
    assert report["by_source"] == {
        "books": {"pairs": 0, "rejected": {"refusal": 1}},
        "web": {"pairs": 1, "rejected": {}},
    }
    assert read_json(tmp_path / "out" / "report.json") == report


def test_templates_do_not_translate(tmp_path):
    """The same input and --language: Chinese passages become pairs, others are rejected, by name."""
    chinese, english = make_documents(2)
    english |= {
        "language": "en",
        "title": "Fever",
        "text": "Fever is a rise of the body's temperature. Drink and rest.",
    }
    inputs = [write(tmp_path / "d.jsonl", [chinese, english])]
    report = unify(inputs, tmp_path / "out", backend="template", language="zh")
    assert report["pairs"] == 1
    assert report["rejected_by_reason"] == {"wrong language of the question": 1}
    assert unify(inputs, tmp_path / "both", backend="template")["pairs"] == 2
    with pytest.raises(ConfigError, match="wrong --language: got 'fr', need one of zh, en"):
        unify(inputs, tmp_path / "fr", backend="template", language="fr")


@pytest.mark.parametrize("option", [{"model": "m"}, {"base_url": "http://127.0.0.1:1/v1"}, {"budget_usd": 1.0}])
def test_template_backend_refuses_what_it_would_ignore(tmp_path, option):
    with pytest.raises(ConfigError, match=f"--{next(iter(option)).replace('_', '-')} has no effect with the template"):
        unify([tmp_path / "d.jsonl"], tmp_path / "out", backend="template", **option)


def test_documents_without_text_are_skipped_and_counted(tmp_path):
    record = {
        "id": "a",
        "source": "web",
        "language": "zh",
        "title": "发热",
        "text": "发热是体温升高。多饮水，注意休息。",
    }
    write(tmp_path / "d.jsonl", [record, {**record, "id": "b", "text": " \n"}])
    report = unify([tmp_path / "d.jsonl"], tmp_path / "out", backend="template")
    assert report["tolerated"] == {"blank text": 1}
    assert len((tmp_path / "out" / "conversations.jsonl").read_text("utf-8").splitlines()) == 1
