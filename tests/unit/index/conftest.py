"""Tokenizers for the tests: one whose ids can be read off, one trained like the demo's, and the published one."""

import json
from pathlib import Path

import pytest

from tests.unit.index.hand_tokenizer import character_model, save_tokenizer

BAICHUAN2 = Path(__file__).parents[4] / "shared/data/baichuan2/tokenizer.model"


@pytest.fixture
def by_hand(tmp_path):
    """Directory of the tokenizer whose ids can be read off CHARACTERS."""
    return save_tokenizer(tmp_path / "by_hand", character_model())


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Directory of a vocabulary of 800 pieces, trained as the demo trains its own."""
    from megatron_huatuo.index.train_tokenizer import train_tokenizer

    directory = tmp_path_factory.mktemp("trained")
    texts = [
        "高血压患者应当低盐饮食，规律服药，并定期测量血压。",
        "糖尿病的治疗包括饮食控制、运动和药物：先用二甲双胍。",
        "Patients with hypertension should reduce salt, take their medicine and measure blood pressure.",
        "Aspirin 100 mg once daily is given after myocardial infarction unless there is active bleeding.",
        "感冒时多休息、多喝水；发热超过 38.5 度可服用对乙酰氨基酚。\n若三天不退，应当就医。",
    ]
    with open(directory / "texts.jsonl", "w", encoding="utf-8") as handle:
        for number in range(60):
            text = texts[number % len(texts)][number % 7 :] + texts[(number * 3 + 1) % len(texts)]
            handle.write(json.dumps({"id": number, "source": "s", "language": "zh", "text": text}) + "\n")
    train_tokenizer([directory / "texts.jsonl"], directory / "tokenizer", 800)
    return directory / "tokenizer"


@pytest.fixture
def baichuan2():
    """The published Baichuan2 model file."""
    if not BAICHUAN2.is_file():
        pytest.skip(f"no published tokenizer at {BAICHUAN2}")
    return BAICHUAN2
