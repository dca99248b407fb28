"""Money: never overdrawn, exact in the ledger, and a stop that loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.llm.budget import Budget, BudgetReached, Price, SharedBudget, load_prices
from megatron_huatuo.storage.jsonl import read_jsonl
from megatron_huatuo.storage.manifest import read_json
from megatron_huatuo.unify import SamplingSettings, unify
from tests.unit.unify.endpoint_server import Asked, EndpointServer, Reply, completion

PRICES = "m: {prompt_usd_per_million: 1000, completion_usd_per_million: 3000}\n"
COST_A_REQUEST_USD = 11 * 1000e-6 + 7 * 3000e-6  # of the server's 11 + 7 tokens


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return str(path)


def test_a_run_stops_before_its_budget_and_goes_on_with_a_larger_one(write_documents, impatient, tmp_path, prices):
    documents, output = write_documents(20), tmp_path / "out"
    sampling = SamplingSettings(max_question_tokens=64, max_answer_tokens=64)

    def run(server: EndpointServer, budget_usd: float) -> dict:
        return unify([documents], output, backend="openai", base_url=server.base_url, model="m", patience=impatient,
                     sampling=sampling, prices=prices, budget_usd=budget_usd, max_concurrency=4)  # fmt: skip

    with EndpointServer() as server:
        report = run(server, 1.8)
        paid = len(server.asked)
        assert report["state"] == "stopped: budget" and 0 < report["pairs"] < 20
        assert report["pairs"] + report["not_reached"] == report["documents"] == 20
        assert paid * COST_A_REQUEST_USD <= 1.8
        assert read_json(output / "ledger.json")["cost_usd"] == pytest.approx(paid * COST_A_REQUEST_USD)
        assert read_json(output / "manifest.json")["complete"] is False
        report = run(server, 100.0)
        assert report["state"] == "complete" and report["pairs"] == 20
        assert len(server.asked) == 40, "a paid request was repeated"
    ledger = read_json(output / "ledger.json")
    assert ledger["cost_usd"] == pytest.approx(40 * COST_A_REQUEST_USD) and ledger["requests"] == 40


def test_the_ledger_counts_what_the_endpoint_counted(write_documents, impatient, tmp_path, prices):
    counted = []

    def handler(asked: Asked) -> Reply:
        text = "治疗时应遵医嘱，并定期复查。" if asked.wants_answer else "患者应如何治疗？"
        counted.append((len(asked.prompt), asked.number + 1))
        return completion(text, usage=counted[-1])

    with EndpointServer(handler) as server:
        unify([write_documents(6)], tmp_path / "out", backend="openai", base_url=server.base_url, model="m",
              patience=impatient, prices=prices)  # fmt: skip
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert ledger["prompt_tokens"] == sum(prompt for prompt, _ in counted)
    assert ledger["completion_tokens"] == sum(completion_tokens for _, completion_tokens in counted)
    assert ledger["replies_with_estimated_tokens"] == 0


def test_uncounted_tokens_are_estimated_from_above(write_documents, impatient, tmp_path, prices):
    with EndpointServer(lambda asked: completion("患者应如何治疗？", usage=None)) as server:
        unify([write_documents(1)], tmp_path / "out", backend="openai", base_url=server.base_url, model="m",
              patience=impatient, prices=prices, preview=1)  # fmt: skip
        prompt_bytes = len(server.asked[0].prompt.encode())
    with EndpointServer() as server:
        unify([write_documents(2)], tmp_path / "out", backend="openai", base_url=server.base_url, model="m",
              patience=impatient, prices=prices)  # fmt: skip
    ledger = read_json(tmp_path / "out" / "ledger.json")
    assert ledger["replies_with_estimated_tokens"] > 0 and ledger["prompt_tokens"] > prompt_bytes


def test_a_preview_shows_pairs_writes_nothing_and_is_not_paid_twice(write_documents, impatient, tmp_path, capsys):
    documents, output = write_documents(6), tmp_path / "out"
    with EndpointServer() as server:
        settings = {"backend": "openai", "base_url": server.base_url, "model": "m", "patience": impatient}
        unify([documents], output, preview=2, **settings)
        shown = capsys.readouterr().out
        assert len(server.asked) == 4 and not output.exists()
        assert "── d0 (books)" in shown and "<问>：请说明" in shown and "d2" not in shown
        unify([documents], output, **settings)
        assert len(server.asked) == 12
    assert len(list(read_jsonl(output / "conversations.jsonl"))) == 6


def test_a_budget_is_never_overdrawn_by_requests_in_flight(tmp_path):
    async def spend() -> tuple[float, int]:
        budget = Budget({"m": Price(1.0, 1.0)}, SharedBudget(tmp_path / "granted", 10.0))
        refused = 0

        async def one() -> None:
            nonlocal refused
            try:
                reserved = await budget.reserve("m", 500_000, 500_000)
            except BudgetReached:
                refused += 1
                return
            assert budget.spent_usd + budget._reserved_usd <= 10.0 + 1e-9
            await asyncio.sleep(0.001)
            await budget.settle(reserved, 0.6)

        await asyncio.gather(*(one() for _ in range(40)))
        return budget.spent_usd, refused

    spent, refused = asyncio.run(spend())
    assert spent == pytest.approx(0.6 * 16) and refused == 24  # 9.6 leaves less than the dollar a request may cost


def test_a_budget_needs_prices(write_documents, tmp_path, prices):
    settings = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(ConfigError, match="a budget needs prices"):
        unify([write_documents(1)], tmp_path / "out", model="m", budget_usd=5, **settings)
    with pytest.raises(ConfigError, match="no price for model 'other'"):
        unify([write_documents(1)], tmp_path / "out", model="other", prices=prices, **settings)
    with pytest.raises(ConfigError, match="wrong --budget-usd: got -1, need more than 0"):
        unify([write_documents(1)], tmp_path / "out", model="m", prices=prices, budget_usd=-1, **settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "need {model: prices}"),
        ("m: 5", "need prompt_usd_per_million"),
        ("m: {prompt_usd_per_million: 1}", "need prompt_usd_per_million"),
        ("m: {prompt_usd_per_million: -1, completion_usd_per_million: .nan}", "finite numbers"),
        ("m: {", "cannot read the price table"),
    ],
)
def test_a_wrong_price_table_is_refused(content, message, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_prices(str(path))
