"""What megatron-core gives the classes of Transformer Engine is known to every release that is allowed.

Read from megatron-core's source as it is installed, branch by branch of its questions for the release, against the parameters
in gpu_signatures.json (tag, commit and file with each); Transformer Engine is not needed.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from megatron.core.packed_seq_params import PackedSeqParams
from packaging.version import Version

RELEASES = json.loads(Path(__file__).with_name("gpu_signatures.json").read_text("utf-8"))["NVIDIA/TransformerEngine"]
CLASSES = {
    "TELinear": "Linear",
    "TELayerNormColumnParallelLinear": "LayerNormLinear",
    "TEDotProductAttention": "DotProductAttention",
    "TENorm": "RMSNorm",
}


@functools.lru_cache
def _source() -> ast.Module:
    package = importlib.util.find_spec("megatron.core")
    assert package is not None and package.origin is not None
    return ast.parse((Path(package.origin).parent / "extensions" / "transformer_engine.py").read_text("utf-8"))


def _holds(test: ast.expr, release: Version) -> bool | None:
    """What `is_te_min_version("1.5.0", …)` and `get_te_version() < PkgVersion("1.5.0")` answer; None for other questions, both of
    whose branches are read."""
    if isinstance(test, ast.Compare) and getattr(getattr(test.left, "func", None), "id", "") == "get_te_version":
        [operator], [version] = test.ops, test.comparators
        return release < Version(ast.literal_eval(version.args[0])) if isinstance(operator, ast.Lt) else None
    if not (isinstance(test, ast.Call) and getattr(test.func, "id", "") == "is_te_min_version"):
        return None
    wanted = Version(ast.literal_eval(test.args[0]))
    equal_too = all(ast.literal_eval(word.value) for word in test.keywords if word.arg == "check_equality")
    return release > wanted or (equal_too and release == wanted)


def _reached(nodes: list[ast.stmt], release: Version) -> Iterator[ast.AST]:
    for node in nodes:
        if isinstance(node, ast.If):
            answer = _holds(node.test, release)
            yield from _reached(node.body if answer is not False else [], release)
            yield from _reached(node.orelse if answer is not True else [], release)
        else:
            yield from ast.walk(node)


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def given(name: str, release: Version) -> set[str]:
    """Names of the arguments with which megatron-core makes an object of Transformer Engine in its class `name`."""
    module = _source()
    bodies = {node.name: node.body for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    constructor = "__new__" if name == "TENorm" else "__init__"
    [body] = [node.body for node in bodies[name] if isinstance(node, ast.FunctionDef) and node.name == constructor]
    # megatron-core 0.19 chooses the norm first and then makes it.
    callees = {"RMSNorm", "norm_module"} if name == "TENorm" else {"__init__"}
    reached, shared = [*_reached(body, release)], "_get_extra_te_kwargs"
    if any(getattr(node, "id", "") == shared for node in reached):
        reached += _reached(bodies[shared], release)
    names = set[str]()
    for node in reached:
        if isinstance(node, ast.Call) and _called(node) in callees:
            names |= {word.arg for word in node.keywords if word.arg is not None}
        if isinstance(node, ast.Subscript) and "kwargs" in getattr(node.value, "id", ""):
            names.add(ast.literal_eval(node.slice))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names |= {ast.literal_eval(key) for key in node.value.keys if key is not None}
    return names


def kept_back(release: Version) -> set[str]:
    """What packed rows say that megatron-core does not pass on to Transformer Engine's attention."""
    [attention] = [node for node in _source().body if getattr(node, "name", "") == "TEDotProductAttention"]
    reached = [
        node for part in attention.body if isinstance(part, ast.FunctionDef) for node in _reached(part.body, release)
    ]
    return {
        ast.literal_eval(node.args[0]) for node in reached if isinstance(node, ast.Call) and _called(node) == "discard"
    }


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_release_knows_what_its_classes_are_given(name: str, release: str) -> None:
    recorded = RELEASES[release]["classes"][f"{CLASSES[name]}.__init__"]
    names = given(name, Version(release))
    assert {"params_dtype", "device"} <= names or name == "TEDotProductAttention"
    known = {*recorded["required"], *recorded["optional"]}
    if recorded.get("takes_others"):  # handed on to torch's module, which knows the device
        known.add("device")
    assert len(names) >= 6 and sorted(names - known) == []


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_knows_what_packed_rows_are_given_as(release: str) -> None:
    recorded = RELEASES[release]["classes"]["DotProductAttention.forward"]
    fields = {field.name for field in dataclasses.fields(PackedSeqParams)} - kept_back(Version(release))
    assert {"qkv_format", "cu_seqlens_q", "max_seqlen_kv"} <= fields
    assert sorted(({*fields, "attn_mask_type"}) - {*recorded["required"], *recorded["optional"]}) == []


def test_branches_of_older_releases_are_told_apart() -> None:
    assert "ub_split_ag" in given("TELinear", Version("1.4")) and "ub_overlap_ag" in given("TELinear", Version("2.9"))
    assert "ub_split_ag" not in given("TELinear", Version("2.9"))
