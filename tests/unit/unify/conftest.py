"""Documents, settings and a comparison that the tests of unification share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_huatuo.unify import PatienceSettings

FILES = ("conversations.jsonl", "rejected.jsonl", "report.json")
SUBJECTS = [
    "高血压",
    "糖尿病",
    "哮喘",
    "痛风",
    "中风",
    "贫血",
    "肺炎",
    "胃炎",
    "湿疹",
    "失眠",
    "偏头痛",
    "肾结石",
    "甲亢",
    "白内障",
    "骨折",
    "肝炎",
    "麻疹",
    "水痘",
    "癫痫",
    "便秘",
]


def make_documents(number: int) -> list[dict]:
    """Distinct Chinese documents."""
    return [
        {
            "id": f"d{index}",
            "source": "web" if index % 2 else "books",
            "language": "zh",
            "title": SUBJECTS[index % len(SUBJECTS)],
            "text": f"{SUBJECTS[index % len(SUBJECTS)]}患者第{index}组共{index * 7 + 3}例，常见症状为乏力与不适。"
            f"治疗时应遵医嘱，每日服药{index % 3 + 1}次，每次{index + 5}毫克，并定期复查。",
        }
        for index in range(number)
    ]


def same_bytes(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


@pytest.fixture
def write_documents(tmp_path: Path) -> Callable[[int], Path]:
    def write(number: int) -> Path:
        path = tmp_path / "documents.jsonl"
        path.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in make_documents(number)), "utf-8")
        return path

    return write


@pytest.fixture
def impatient() -> PatienceSettings:
    """Real retries and waits, short enough for a test."""
    return PatienceSettings(request_timeout_s=30, max_retries=3, backoff_s=0.01, max_wait_s=0.05, max_retry_after_s=5)
