"""The blend's YAML: what it means, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.blend.blend_settings import parse_blend_config, read_blend_config
from megatron_huatuo.config import read_yaml
from megatron_huatuo.errors import ConfigError

GOOD: dict[str, Any] = {
    "seq_length": 128,
    "seed": 1,
    "sources": [
        {"name": "web", "path_prefix": "p/web", "level": 5},
        {"name": "sft", "path_prefix": "p/s", "priority": 1},
    ],
}


def _with_source(**changes: Any) -> dict[str, Any]:
    source = {"name": "web", "path_prefix": "p/web", "priority": 1, **changes}
    return {**GOOD, "sources": [{key: value for key, value in source.items() if value is not None}]}


def test_levels_are_powers_of_beta() -> None:
    config = parse_blend_config({**GOOD, "beta": 3, "packing": {"window": 7}}, "f.yaml")
    assert config.priorities == [243.0, 1.0]
    assert config.packing.window == 7
    assert parse_blend_config(GOOD, "f.yaml").priorities[0] == 32.0
    fractional = _with_source(priority=None, level=0.5)
    assert parse_blend_config(fractional, "f.yaml").priorities[0] == 2**0.5


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "配置.yaml"
    path.write_text(
        "seq_length: 8\nseed: 1\nsources: [{name: 医学, path_prefix: x, priority: 1e-3}]\n", encoding="utf-8"
    )
    config = read_blend_config(path)
    assert config.priorities == [0.001] and config.sources[0].name == "医学"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "sead": 3}, r"unknown key: got 'sead', need one of seq_length, seed, .* \(f.yaml\)"),
        ({**GOOD, "seed": None}, r"missing key: seed \(f.yaml\)"),
        ({**GOOD, "seed": -1}, r"wrong seed: got -1"),
        ({**GOOD, "seq_length": 0}, r"wrong seq_length: got 0, need a whole number from 2"),
        ({**GOOD, "seq_length": 12.5}, r"wrong seq_length: got 12.5"),
        ({**GOOD, "packing": {"window": 0}}, r"wrong packing.window: got 0, need a whole number from 1"),
        ({**GOOD, "packing": {"windows": 3}}, r"unknown key: got 'windows', need one of window"),
        ({**GOOD, "packing": 3}, r"wrong section: got int, need keys and values \(f.yaml, packing\)"),
        ({**GOOD, "sources": []}, r"wrong sources: need a list of 1 to 65535"),
        ({**GOOD, "sources": [GOOD["sources"][0]] * 2}, r"two sources have one name: got 'web' again"),
        ({**GOOD, "beta": -2, "sources": GOOD["sources"][:1]}, r"source 'web'\): |beta -2 \*\* level 5"),
        ({**GOOD, "beta": "two"}, r"wrong beta: got 'two', need a number"),
        ([], r"wrong section: got list, need keys and values"),
        (None, r"wrong section: got NoneType"),
        (_with_source(level=3), r"need exactly one of priority and level \(f.yaml, sources\[0\], source 'web'\)"),
        (_with_source(priority=None), r"need exactly one of priority and level"),
        (_with_source(priority=0), r"wrong priority: got 0, need a finite number > 0 \(.*source 'web'\)"),
        (_with_source(priority=-2.5), r"wrong priority: got -2.5"),
        (_with_source(priority=float("nan")), r"wrong priority: got nan"),
        (_with_source(priority=float("inf")), r"wrong priority: got inf"),
        (_with_source(priority="high"), r"wrong priority: got 'high', need a number"),
        (_with_source(priority=True), r"wrong priority: got True, need a number"),
        (_with_source(priority=None, level=1e9), r"wrong priority: got beta 2.0 \*\* level 1000000000.0"),
        (_with_source(epochs=-1), r"wrong epochs of source 'web': got -1, need a finite number >= 0"),
        (_with_source(name=""), r"wrong name: got '', need text"),
        (_with_source(name=None), r"missing key: name"),
        (_with_source(path_prefix=7), r"wrong path_prefix: got 7, need text"),
        (_with_source(name="we\nb"), r"wrong name: got 'we\\nb', need text without line breaks and tabs"),
        (_with_source(name=7), r"wrong name: got 7, need text \(f.yaml, sources\[0\], source 7\)"),
        ({**GOOD, "sources": {"web": "p/web"}}, r"wrong sources: got \{'web': 'p/web'\}, need a list \(f.yaml\)"),
        ({**GOOD, "sources": ["p/web"]}, r"wrong section: got str, need keys and values \(f.yaml, sources\[0\]\)"),
        (_with_source(weight=7), r"unknown key: got 'weight', need one of name, path_prefix, priority, level, epochs"),
    ],
)
def test_bad_configurations_name_file_key_and_value(content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_blend_config(content, "f.yaml")


@pytest.mark.parametrize(
    ("name", "prefix", "message"),
    [
        (
            "Web",
            "p/x",
            r"two sources have nearly one name: got 'Web' beside 'web', need names that differ in more than",
        ),
        ("web ", "p/x", r"two sources have nearly one name: got 'web ' beside 'web'"),
        ("ｗｅｂ", "p/x", r"two sources have nearly one name: got 'ｗｅｂ' beside 'web'"),
        (
            "other",
            "p/web",
            r"two sources have one index: got path_prefix 'p/web' for 'other' and 'web', need one source",
        ),
        ("other", "p/../p//web", r"two sources have one index: got path_prefix 'p/../p//web' .* Raise its epochs"),
    ],
)
def test_sources_that_would_be_mistaken_for_each_other_are_refused(name: str, prefix: str, message: str) -> None:
    other = {"name": name, "path_prefix": prefix, "priority": 1}
    with pytest.raises(ConfigError, match=message):
        parse_blend_config({**GOOD, "sources": [*GOOD["sources"], other]}, "f.yaml")


def test_a_key_that_comes_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("seq_length: 8\nseed: 1\nsources:\n- {name: a, path_prefix: x, priority: 1}\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"twice.yaml \(the key 'seed' comes twice in .*line 5"):
        read_blend_config(path)
    path.write_text("a: &a {priority: 1, epochs: 2}\nb: {<<: *a, epochs: 3}\n")
    assert read_yaml(path)["b"] == {"priority": 1, "epochs": 3}


def test_files_that_are_no_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"configuration cannot be read: .*none.yaml \(No such file"):
        read_blend_config(tmp_path / "none.yaml")
    (tmp_path / "torn.yaml").write_text("sources: [")
    with pytest.raises(ConfigError, match=r"configuration is not YAML: .*torn.yaml"):
        read_blend_config(tmp_path / "torn.yaml")


def test_variables_of_the_environment_stand_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/disk/one")
    monkeypatch.delenv("NOWHERE", raising=False)
    content = _with_source(path_prefix="$DATA/web")
    assert parse_blend_config(content, "x").sources[0].path_prefix == "/disk/one/web"
    content = _with_source(path_prefix="$NOWHERE/web")
    assert parse_blend_config(content, "x").sources[0].path_prefix == "$NOWHERE/web"
