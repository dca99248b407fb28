"""Language, sentences, repetition, and near-duplicates."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.text.language import count_size, detect_language
from megatron_huatuo.text.minhash import NUM_PERMUTATIONS, signature, similarity
from megatron_huatuo.text.sentences import first_sentence, split_clauses, split_sentences

MIXED = st.text("血压。！？；，：、 \n.,:;!?Dr A1e.g", max_size=60)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("高血压的治疗", "zh"),
        ("使用 MRI 和 CT 检查 brain tumor 的患者", "zh"),
        ("Patients should take their medicine.", "en"),
        ("The herb 当归 (Angelica sinensis) is used to nourish the blood in traditional medicine.", "en"),
        ("Пациентам следует принимать лекарства", "other"),
        ("患者は薬を飲むべきですと言われました", "other"),
        ("Les patients doivent prendre leurs médicaments tous les jours pendant le traitement de la maladie chronique, "
         "et consulter leur médecin si les symptômes persistent", "other"),
        ("120/80", "other"),
        ("", "other"),
    ],
)  # fmt: skip
def test_languages(text, language):
    assert detect_language(text) == language


def test_sizes_count_what_a_reader_counts():
    assert count_size("阿司匹林 aspirin 100mg。", "zh") == 6 and count_size("Take aspirin, 100 mg.", "en") == 4


@given(MIXED)
@settings(max_examples=150, deadline=None)
def test_pieces_give_the_text_back(text):
    assert "".join(split_sentences(text)) == text == "".join(split_clauses(text))
    assert all(split_sentences(text))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("血压高。“要治疗。”他说。", ["血压高。", "“要治疗。”", "他说。"]),
        ("It is 3.5 mmol/L. See Fig. 2 and e.g. Smith et al. for J. Doe's data. Done", ["It is 3.5 mmol/L. ", "See Fig. 2 and e.g. Smith et al. for J. Doe's data. ", "Done"]),
        ("第一行\n第二行", ["第一行\n", "第二行"]),
    ],
)  # fmt: skip
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences and first_sentence(text) == sentences[0].strip()


def words(seed, number):
    choose = random.Random(seed)
    return [f"w{choose.randrange(10**6)}" for _ in range(number)]


def test_similarity_estimates_the_share_of_common_shingles():
    errors = []
    for seed in range(40):
        first = words(seed, 300)
        second = list(first)
        for position in random.Random(seed).sample(range(300), seed):
            second[position] = "changed"
        shingles = [{tuple(text[i : i + 3]) for i in range(298)} for text in (first, second)]
        true = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
        errors.append(similarity(signature(" ".join(first)), signature(" ".join(second))) - true)
    assert abs(np.mean(errors)) < 0.03 and np.std(errors) < 0.06


def test_signatures_ignore_case_punctuation_and_white_space():
    assert (signature("Aspirin, 100 mg：血压。") == signature("aspirin 100 MG 血\n压")).all()
    assert signature("").shape == (NUM_PERMUTATIONS,) and (signature("a b") != signature("b c")).any()
