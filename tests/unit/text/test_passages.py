"""Passages cut from long texts, and personal data masked in them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.text.language import count_size
from megatron_huatuo.text.personal_data import is_identity_number, mask_personal_data
from megatron_huatuo.text.segment import segment


@given(st.text("血压升高服药，。！；：、abc XY 1.,\n", max_size=300), st.integers(1, 60), st.sampled_from(["zh", "en"]))
@settings(max_examples=250, deadline=None)
def test_segments_hold_every_character_and_none_is_too_long(text, max_size, language):
    passages = segment(text, language, max_size)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(passage.strip() == passage and passage for passage in passages)
    assert all(count_size(passage, language) <= max_size for passage in passages)


def test_segments_end_at_sentences_and_have_nearly_equal_sizes():
    text = "".join(f"第{number}句话说明患者应当遵守医嘱。" for number in range(30))
    passages = segment(text, "zh", 100)
    assert all(passage.endswith("。") for passage in passages)
    sizes = [count_size(passage, "zh") for passage in passages]
    assert max(sizes) <= 100 and min(sizes) > 0.6 * max(sizes)


@pytest.mark.parametrize(("size", "parts"), [(0, 0), (1, 1), (50, 1), (51, 2), (100, 2), (101, 3)])
def test_exact_fit_and_one_over(size, parts):
    assert len(segment("血" * size, "zh", 50)) == parts


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "text", ["血" * 3_400_000, "血压高。" * 100_000, "a" * 1_000_000, "word " * 100_000, "，" * 200_000]
)
def test_10_mb_of_one_run_take_linear_time(text):
    """A quadratic step would take hours."""
    passages = segment(text, "zh", 600)
    assert sum(len("".join(passage.split())) for passage in passages) == len("".join(text.split()))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("电话13812345678。", "电话[电话]。"),
        ("手机：138-1234-5678", "手机：[电话]"),
        ("+86 13812345678", "[电话]"),
        ("座机010-12345678转8", "座机[电话]转8"),
        ("0571-8765432", "[电话]"),
        ("call (212) 555-0123 now", "call [电话] now"),
        ("+44 20 7946 0958", "[电话]"),
        ("邮箱a.b+c@mail.example.com", "邮箱[邮箱]"),
        ("身份证11010519491231002X", "身份证[证件号]"),
        ("样本110105194912310021", "样本110105194912310021"),
        ("血压120/80，心率72，2019-11-20，剂量0.125mg", "血压120/80，心率72，2019-11-20，剂量0.125mg"),
        ("PMID 31745112, doi 10.1000/182-345.12", "PMID 31745112, doi 10.1000/182-345.12"),
        ("白细胞13812345678901个", "白细胞13812345678901个"),
        ("红细胞4.5×10^12，血糖3.9-6.1", "红细胞4.5×10^12，血糖3.9-6.1"),
    ],
)
def test_personal_data_and_what_only_looks_like_it(text, masked):
    counts: Counter[str] = Counter()
    assert mask_personal_data(text, "zh", counts) == masked
    assert counts.total() == masked.count("[")


def test_identity_numbers_need_a_date_and_the_right_check_digit():
    assert is_identity_number("11010519491231002X") and is_identity_number("11010519491231002x")
    assert not is_identity_number("110105194912310021") and not is_identity_number("110105194913310029")


def test_marks_follow_the_language_and_masking_is_idempotent():
    once = mask_personal_data("mail me: a@b.org or 212-555-0123", "en")
    assert once == "mail me: [email] or [phone]" == mask_personal_data(once, "en")
