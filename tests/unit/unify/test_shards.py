"""Many tasks, one output: the same bytes as one task, and one budget for all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from megatron_huatuo.errors import ConfigError, DataError
from megatron_huatuo.execution import ExecutorSettings
from megatron_huatuo.llm.budget import Price, SharedBudget
from megatron_huatuo.llm.endpoint_settings import EndpointSettings
from megatron_huatuo.llm.request_log import Reply, RequestLog, fold_logs, known_log, read_totals, task_log
from megatron_huatuo.storage.jsonl import BadLines, read_jsonl
from megatron_huatuo.storage.lock import exclusive
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.unify import QualitySettings, SamplingSettings, unify
from megatron_huatuo.unify.input_documents import cut, read_documents
from megatron_huatuo.unify.run_job import Job, LiveFigures
from megatron_huatuo.unify.writers.writer_settings import ModelOptions
from tests.unit import kill
from tests.unit.execution import slurm
from tests.unit.unify.conftest import make_documents, same_bytes
from tests.unit.unify.endpoint_server import EndpointServer
from tests.unit.unify.test_budget import COST_A_REQUEST_USD, PRICES

TWO = ExecutorSettings(workers=2)


def mixed_documents(folder: Path) -> Path:
    """Documents of which some are refused, some repeat an earlier one, and some lines are bad."""
    rows = make_documents(40)
    rows[3]["text"] = rows[33]["text"] = "很抱歉，我无法提供这方面的信息，请咨询医生。"
    for index in (8, 9, 38):
        rows[index] = {**rows[7], "id": f"again-{index}"}
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[20] = "{torn"
    path = folder / "documents.jsonl"
    path.write_text("\n".join(lines), "utf-8")  # the last line has no end
    return path


@pytest.mark.parametrize("lines_a_shard", [1, 7, 40, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_loses_no_line_and_keeps_numbers_and_offsets(lines_a_shard, packed, tmp_path):
    path = mixed_documents(tmp_path)
    if packed:
        path = tmp_path / "documents.jsonl.gz"
        path.write_bytes(gzip.compress((tmp_path / "documents.jsonl").read_bytes()))
    shards = cut(str(path), lines_a_shard)
    assert len(shards) == -(-40 // lines_a_shard) and sum(shard.lines for shard in shards) == 40
    whole, pieces = BadLines(9), BadLines(9)
    expected = list(read_documents(cut(str(path), 1000)[0], whole))
    assert [task for shard in shards for task in read_documents(shard, pieces)] == expected
    assert pieces.lines == whole.lines and len(expected) == 39


def test_a_file_that_ends_with_its_last_shard_or_is_empty_has_no_shard_too_many(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"{}\n" * 6)
    assert [shard[1:] for shard in cut(str(path), 3)] == [(0, 0, 3), (3, 9, 3)]
    path.write_bytes(b"")
    assert [shard[1:] for shard in cut(str(path), 3)] == [(0, 0, 0)]


@pytest.mark.slow
def test_tasks_of_any_size_on_any_workers_give_the_bytes_of_one_task(tmp_path, impatient):
    path = mixed_documents(tmp_path)
    with EndpointServer() as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "patience": impatient,
                    "max_bad_lines": 1}  # fmt: skip
        report = unify([path], tmp_path / "one", **settings)
        asked = len(server.asked)
        for name, execution in (("many", ExecutorSettings()), ("two", TWO)):
            unify([path], tmp_path / name, documents_per_task=9, execution=execution, **settings)
            assert same_bytes(tmp_path / "one", tmp_path / name)
    assert report["rejected_by_reason"] == {"near-duplicate pair": 3, "refusal": 2}
    reasons = [line.record["reason"] for line in read_jsonl(tmp_path / "two" / "rejected.jsonl")]
    assert reasons[2:5] == ["near-duplicate pair: of d7"] * 3 and reasons[5].startswith("malformed JSON")
    ledgers = [read_json(tmp_path / name / "ledger.json") for name in ("one", "many", "two")]
    # Equal passages are asked once in one task, and perhaps once in each of several.
    assert ledgers[0]["requests"] == asked == 2 * 36 + 2
    assert len(server.asked) == sum(ledger["requests"] for ledger in ledgers) and ledgers[2]["requests"] >= asked
    assert not list(tmp_path.glob("*.work")) and [p.name for p in (tmp_path / "two.requests").iterdir()] == [
        "known.sqlite"
    ]


def test_bad_lines_of_all_tasks_count_together(tmp_path):
    rows = [json.dumps(row, ensure_ascii=False) for row in make_documents(6)]
    rows[1] = rows[4] = "{torn"
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(rows), "utf-8")
    with pytest.raises(DataError, match="2 bad so far, allowed 1"):
        unify([path], tmp_path / "out", documents_per_task=3, max_bad_lines=1)
    assert unify([path], tmp_path / "out", documents_per_task=3, max_bad_lines=2)["pairs"] == 4


def test_all_tasks_together_keep_to_one_budget(write_documents, impatient, tmp_path):
    """All 48 requests would cost 1.536 USD."""
    documents, output = write_documents(24), tmp_path / "out"
    (tmp_path / "prices.yaml").write_text(PRICES)

    def run(server: EndpointServer, budget_usd: float) -> dict:
        return unify([documents], output, backend="openai", base_url=server.base_url, model="m", patience=impatient,
                     sampling=SamplingSettings(max_question_tokens=64, max_answer_tokens=64), max_concurrency=4,
                     prices=str(tmp_path / "prices.yaml"), budget_usd=budget_usd, documents_per_task=6,
                     execution=TWO)  # fmt: skip

    with EndpointServer() as server:
        report = run(server, 1.5)
        assert report["state"] == "stopped: budget" and 0 < report["pairs"] < 24
        assert report["pairs"] + report["not_reached"] == 24
        paid = len(server.asked)
        assert paid * COST_A_REQUEST_USD <= 1.5
        assert read_json(output / "ledger.json")["cost_usd"] == pytest.approx(paid * COST_A_REQUEST_USD)
        assert run(server, 1.5) == report and len(server.asked) == paid, "the same budget tried again"
        assert run(server, 100.0)["state"] == "complete"
        assert len(server.asked) == 48, "a paid request was repeated"
    assert read_json(output / "ledger.json")["cost_usd"] == pytest.approx(48 * COST_A_REQUEST_USD)


@pytest.mark.slow
def test_one_bar_over_several_workers_shows_requests_and_money(write_documents, tmp_path):
    (tmp_path / "prices.yaml").write_text(PRICES)
    with EndpointServer() as server:
        process = kill.start_tool(
            "unify_corpus", "--input", write_documents(8), "--output", tmp_path / "out", "--backend", "openai",
            "--base-url", server.base_url, "--model", "m", "--prices", tmp_path / "prices.yaml", "--workers", "2",
            "--documents-per-task", "2",
        )  # fmt: skip
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0 and b"4/4" in error, error.decode()
    assert f"requests=16, usd={16 * COST_A_REQUEST_USD:.2f}" in error.decode()


def test_figures_of_tasks_at_work_are_read_from_their_logs(write_documents, tmp_path):
    model = ModelOptions(
        EndpointSettings("http://host/v1", "m"), SamplingSettings(), {}, prices={"m": Price(1000, 3000)}
    )
    shards = tuple(cut(str(write_documents(4)), 2))
    job = Job(shards, tmp_path / "work", tmp_path / "requests", QualitySettings(), model, None, 1, False, False, 0)
    figures = LiveFigures(job, model)
    assert figures() == {"requests": "0", "usd": "0.00"}
    for rank in (0, 1):
        log = RequestLog(task_log(job.requests, rank))
        log.note_sent("answered", 0, "m")
        log.note_sent("in flight", 0, "m")
        log.note_reply("answered", 0, Reply("text", "stop", 11, 7))
        log.note_failure("time-out")
        assert figures() == {"requests": str(2 * rank + 2), "usd": f"{(rank + 1) * COST_A_REQUEST_USD:.2f}"}
        log.close()
        job.shard_path(rank).mkdir(parents=True)
        assert figures()["requests"] == str(2 * rank + 2)
    task_log(job.requests, 0).unlink()
    assert figures()["requests"] == "4", "a finished task is read once"


def test_a_shared_budget_grants_no_more_than_it_holds_and_takes_back(tmp_path):
    shared = SharedBudget(tmp_path / "granted", 10.0)
    shared.start(2.0)
    assert shared.grant(9.0) == 0.0 and shared.grant(5.0) == 5.0
    assert shared.grant(0.001) == pytest.approx(0.01), "a thousandth of the budget at a time"
    shared.give_back(1.01)
    assert shared.grant(4.0) == pytest.approx(4.0) and shared.grant(0.1) == 0.0
    shared.start(0.0)
    assert shared.grant(10.0) == 10.0


def test_logs_fold_into_one_however_often_and_keep_every_paid_request(tmp_path):
    for rank in (0, 1):
        log = RequestLog(task_log(tmp_path, rank))
        log.note_sent("same", 0, "m")
        log.note_reply("same", 0, Reply(f"from {rank}", "stop", 3, 4))
        log.note_sent(f"lost {rank}", 0, "m")
        log.note_failure("time-out")
        log.close()
    kept = task_log(tmp_path, 0).read_bytes()
    fold_logs(tmp_path)
    task_log(tmp_path, 0).write_bytes(kept)  # as if a kill had come before it was deleted
    task_log(tmp_path, 2).touch()  # and before a log got its tables
    (totals,), failures = read_totals(tmp_path)
    assert (totals.replies, totals.unanswered, totals.prompt_tokens, failures) == (2, 2, 6, {"time-out": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["known.sqlite"]
    log = RequestLog(task_log(tmp_path, 0), known_log(tmp_path))
    assert log.find("same", 0).content.startswith("from") and log.find("lost 0", 0) is None
    log.close()


def test_a_task_at_work_elsewhere_is_not_disturbed(write_documents, tmp_path):
    log = task_log(tmp_path / "out.requests", 0)
    RequestLog(log).close()
    with exclusive(log), pytest.raises(DataError, match=r"another process is writing .*task-00000"):
        unify([write_documents(1)], tmp_path / "out", backend="openai", base_url="http://127.0.0.1:9/v1", model="m")


def test_changed_input_asks_only_what_is_new(write_documents, impatient, tmp_path):
    """Requests are found again wherever the cut puts a document."""
    documents = write_documents(20)
    with EndpointServer() as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "patience": impatient}
        unify([documents], tmp_path / "out", documents_per_task=7, **settings)
        rows = documents.read_text("utf-8").splitlines(keepends=True)
        new = json.dumps(make_documents(21)[20], ensure_ascii=False) + "\n"
        documents.write_text("".join([new, *rows[5:]]), "utf-8")
        assert unify([documents], tmp_path / "out", documents_per_task=4, execution=TWO, **settings)["pairs"] == 16
        assert len(server.asked) == 40 + 2


@pytest.mark.slow
def test_a_slurm_array_does_the_tasks_with_a_key_that_stays_in_the_environment(
    write_documents, impatient, tmp_path, monkeypatch
):
    slurm.stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("HUATUO_TEST_KEY", "sk-canary-51c3")
    array = ExecutorSettings(executor="slurm", slurm_partition="cpu", slurm_time="01:30:00", workers=2)
    with EndpointServer() as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "patience": impatient,
                    "api_key_env": "HUATUO_TEST_KEY", "documents_per_task": 4, "execution": array}  # fmt: skip
        documents = write_documents(8)
        assert unify([documents], tmp_path / "out", **settings)["pairs"] == 8
        script = (tmp_path / slurm.SCRIPTS).read_text()
        for line in ("--array=0-1%2", "--partition=cpu", "--time=01:30:00", "--job-name=unify"):
            assert f"#SBATCH {line}" in script, script
        assert len(server.asked) == 16, (tmp_path / slurm.OUTPUT).read_text()
        assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sk-canary-51c3"}
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or b"sk-canary-51c3" not in path.read_bytes(), path


def test_a_task_of_no_documents_is_refused(write_documents, tmp_path):
    with pytest.raises(ConfigError, match="wrong --documents-per-task: got 0, need 1 or more"):
        unify([write_documents(1)], tmp_path / "out", documents_per_task=0)
