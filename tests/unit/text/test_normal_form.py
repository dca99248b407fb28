"""One text policy: what is repaired, what is removed, what is left for others to refuse."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_huatuo.text.normal_form import normal_form


@pytest.mark.parametrize(
    ("raw", "expected", "repairs"),
    [
        ("血压\x00升\x07高", "血压升高", {"control character": 2}),
        ("血\u200b压\ufeff升\u00ad高", "血压升高", {"zero-width character": 3}),
        ("血\u202e压\u2066升\u200f高", "血压升高", {"bidi control": 3}),
        ("血压\ue000\uf8ff", "血压", {"private-use character": 2}),
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne", {"line end": 5}),
        ("Ｂ超５０ｍｇ％", "B超50mg%", {"full-width character": 6}),
        ("e\u0301", "é", {"not in NFC": 1}),
        ("a \u3000\u00a0 b\t\tc", "a b c", {}),
        ("  a  \n   b \n\n\n\n c  ", "a\nb\n\nc", {}),
        ("，。：；！？（）“”", "，。：；！？（）“”", {}),
        ("＜答＞：", "＜答＞：", {}),
        ("<答>：</s>", "<答>：</s>", {}),
        ("剂量\ufffd毫克", "剂量\ufffd毫克", {}),
        ("", "", {}),
        ("\u200b \u3000\n", "", {"zero-width character": 1}),
    ],
)
def test_repairs(raw, expected, repairs):
    counts: Counter[str] = Counter()
    assert normal_form(raw, counts) == expected and dict(counts) == repairs


characters = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\r\u3000\u200b\u202e０Ａ％血压。，e\u0301\ufffd"),
    max_size=60,
)


@given(characters)
@settings(max_examples=150, deadline=None)
def test_it_is_idempotent_and_leaves_no_invisible_character(text):
    once = normal_form(text)
    assert normal_form(once) == once and unicodedata.is_normalized("NFC", once)
    assert once == once.strip() and "\r" not in once and "  " not in once and "\n\n\n" not in once
    assert not any(unicodedata.category(character) in ("Cc", "Co") and character != "\n" for character in once)


@given(st.text("血压升高服药，。！abcXYZ019 \n", max_size=80))
@settings(max_examples=80, deadline=None)
def test_it_changes_nothing_visible(text):
    assert "".join(normal_form(text).split()) == "".join(text.split())


@pytest.mark.parametrize("unit", ["血", " ", "\n", "\u3000", "\u200b", " \n", "Ａ"])
@pytest.mark.timeout(120)
def test_long_runs_take_linear_time(unit):
    """A quadratic step would take hours."""
    assert len(normal_form(unit * (2_000_000 // len(unit)))) in (0, 2_000_000)
