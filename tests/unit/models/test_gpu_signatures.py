"""Our own calls of flash-attn and Transformer Engine fit the signatures of every release that is allowed.

Recorded in gpu_signatures.json from the releases' sources, with tag, commit and file; the packages are not needed.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

RECORDED = json.loads(Path(__file__).with_name("gpu_signatures.json").read_text("utf-8"))
SOURCES = Path(__file__).parents[3] / "megatron_huatuo" / "models" / "core"
CASES = [
    (file, name, repository, tag)
    for file, name, repository in (
        ("attention_flash.py", "flash_attn_varlen_func", "Dao-AILab/flash-attention"),
        ("transformer_engine.py", "initialize_ub", "NVIDIA/TransformerEngine"),
        ("transformer_engine.py", "destroy_ub", "NVIDIA/TransformerEngine"),
    )
    for tag in RECORDED[repository]
]


def misfits(source: str, name: str, signature: dict[str, list[str]]) -> list[str]:
    """What does not fit in any call of `name` in `source`; raises ValueError when it is never called."""
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and name == getattr(node.func, "id", getattr(node.func, "attr", None))
    ]
    if not calls:
        raise ValueError(f"{name} is not called")
    names, wrong = signature["required"] + signature["optional"], list[str]()
    for call in calls:
        keywords: list[Any] = [keyword.arg for keyword in call.keywords]
        given = names[: len(call.args)] + keywords
        wrong += [f"unknown {word}" for word in keywords if word not in names]
        wrong += [f"missing {word}" for word in signature["required"] if word not in given]
        wrong += ["too many positions"] * (len(call.args) > len(names))
    return wrong


@pytest.mark.parametrize(("file", "name", "repository", "tag"), CASES)
def test_our_calls_fit_every_release(file: str, name: str, repository: str, tag: str) -> None:
    recorded = RECORDED[repository][tag]["functions"][name]
    assert misfits((SOURCES / file).read_text("utf-8"), name, recorded) == []


def test_a_call_that_does_not_fit_is_named() -> None:
    signature = {"required": ["q", "k"], "optional": ["scale"]}
    assert misfits("x.f(1, scale=2, window=3)", "f", signature) == ["unknown window", "missing k"]
    with pytest.raises(ValueError, match="f is not called"):
        misfits("g(1)", "f", signature)
