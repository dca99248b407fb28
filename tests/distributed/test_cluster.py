"""The cluster check on two real ranks: what passes, what each fault is called, and that it ends."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from megatron_huatuo.cluster import check as cluster
from megatron_huatuo.cluster.check import format_findings, is_ready
from megatron_huatuo.cluster.cluster_bandwidth import bus_gb_per_s
from megatron_huatuo.cluster.cluster_files import check_shared_files
from megatron_huatuo.cluster.cluster_links import rounds_of_pairs, stand_out
from megatron_huatuo.cluster.cluster_ranks import RankFacts, ranges_of
from megatron_huatuo.cluster.cluster_settings import ClusterSettings, Finding
from megatron_huatuo.errors import ConfigError
from tests.distributed.runner import run_ranks
from tests.ports import free_port
from tests.tool_process import run_tool

ROOT = Path(__file__).parents[2]


def _check(directory: str, fault: str, settings: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Findings of one rank by name."""
    import torch.distributed as dist

    from megatron_huatuo.cluster import check as cluster

    clock = time.time
    if fault == "two nodes":
        socket.gethostname = lambda: f"node-{dist.get_rank() % 2}"
    if fault == "everything" and dist.get_rank() == 1:
        _spoil_versions()
        os.environ["NCCL_DEBUG"] = "INFO"
        clock = lambda: time.time() + 7.0  # noqa: E731
    if fault == "everything" and dist.get_rank() == 0:
        _write_in_place()
    if fault == "leak" and dist.get_rank() == 1:
        _attend_over_the_whole_row()
    found = cluster.check_cluster(ClusterSettings(directory, "cpu", message_mib=1, **settings), clock=clock)
    return {finding.name: (finding.verdict, finding.text) for finding in found}


def _spoil_versions() -> None:
    from megatron_huatuo.cluster import cluster_ranks

    versions = cluster_ranks.installed_versions()
    cluster_ranks.installed_versions = lambda: {**versions, "numpy": "1.0"}


def _write_in_place() -> None:
    """A file system whose files appear piece by piece."""
    from megatron_huatuo.cluster import cluster_files

    def write(path: Path, value: int) -> None:
        with open(path, "wb") as handle:
            for _ in range(2):
                handle.write(bytes([value]) * (cluster_files._BLOCK_BYTES // 2))
                handle.flush()
                time.sleep(0.01)

    cluster_files._write_whole = write


def _attend_over_the_whole_row() -> None:
    from megatron_huatuo.models.core import attention_torch
    from megatron_huatuo.models.core.attention import AttendedSegments

    attend = attention_torch.attend_by_document

    def as_one_document(query: Any, key: Any, value: Any, segments: AttendedSegments, *rest: Any) -> Any:
        return attend(query, key, value, AttendedSegments(segments.cu_seqlens[[0, -1]], query.shape[0]), *rest)

    attention_torch.attend_by_document = as_one_document


def check(tmp_path: Path, fault: str = "", ranks: int = 2, **settings: Any) -> dict[str, tuple[str, str]]:
    """Findings, whose verdicts must be the same on all ranks."""
    found = run_ranks(ranks, _check, str(tmp_path), fault, settings)
    verdicts = [{name: verdict for name, (verdict, _) in findings.items()} for findings in found]
    assert all(findings == verdicts[0] for findings in verdicts)
    assert not list(tmp_path.glob("**/.check_cluster*")), "something was left behind"
    return found[0]


def test_sound_cluster_passes_every_check(tmp_path: Path) -> None:
    found = check(tmp_path)
    assert {verdict for verdict, _ in found.values()} == {"pass"}, found
    assert found["ranks"][1] == "2 ranks on 1 nodes, 2 each"
    assert f"megatron-core {importlib.metadata.version('megatron-core')}" in found["versions"][1]
    assert {"all-reduce, all ranks", "all-gather, all ranks"} <= found.keys()


def test_attention_that_leaks_on_one_rank_is_not_ready_and_named(tmp_path: Path) -> None:
    verdict, text = check(tmp_path, "leak")["isolation"]
    assert verdict == "fail"
    assert text.startswith(
        f"rank 1 on {socket.gethostname()}: attention 'torch' does not keep documents apart: a gradient of "
    )
    assert text.endswith("(1 ranks in all)")


def test_attention_that_is_not_there_is_not_ready_and_named(tmp_path: Path) -> None:
    verdict, text = check(tmp_path, attention="flash_attn")["isolation"]
    assert verdict == "fail" and "wrong model.attention: got 'flash_attn', but it needs a GPU" in text


def test_nodes_are_measured_apart(tmp_path: Path) -> None:
    found = check(tmp_path, "two nodes", ranks=4)
    assert found["ranks"][1] == "4 ranks on 2 nodes, 2 each"
    assert {"all-reduce, each node", "all-gather, each node"} <= found.keys()
    assert found["clocks"][0] == "pass"
    assert found["links"][1].startswith("slowest of 1 pairs: node-0 - node-1, ")


def test_every_fault_is_found_and_named(tmp_path: Path) -> None:
    found = check(tmp_path, "everything", min_bus_gb_per_s=1e6)
    expected = {
        "ranks": ("pass", "2 ranks"),
        "devices": ("pass", "CPU"),
        "versions": ("fail", f"numpy: {numpy.__version__} on ranks 0, 1.0 on ranks 1"),
        "environment": ("warn", "NCCL_DEBUG: (none) on ranks 0, INFO on ranks 1"),
        "clocks": ("fail", "(rank 1) is +"),
        "shared files": ("fail", "rank 1 saw a missing or mixed file"),
        "isolation": ("pass", "documents of a row are kept apart on all ranks in "),
        "all-reduce, all ranks": ("fail", "need 1e+06 (--min-bus-gb-per-s)"),
        "all-gather, all ranks": ("pass", "GB/s on the bus"),
    }
    assert {name: verdict for name, (verdict, _) in found.items()} == {name: it[0] for name, it in expected.items()}
    for name, (_, message) in expected.items():
        assert message in found[name][1]
    # Not "+7.0": a clock that is read in two processes gives 6.999 as well.
    assert float(found["clocks"][1].partition("(rank 1) is +")[2].split()[0]) == pytest.approx(7, abs=0.05)


def _check_files(directories: list[str]) -> str | None:
    import torch.distributed as dist

    return check_shared_files(directories[dist.get_rank()], 0.5)[0]


@pytest.mark.parametrize(
    ("other", "message"), [("other", "rank 0 does not see the file of rank 1"), ("no/such", "rank 1 cannot write to")]
)
def test_folder_that_is_not_shared_is_found(tmp_path: Path, other: str, message: str) -> None:
    (tmp_path / "other").mkdir()
    problems = run_ranks(2, _check_files, [str(tmp_path), str(tmp_path / other)])
    assert problems[0] == problems[1] and message in (problems[0] or "")


def facts(rank: int, host: str, **changes: Any) -> RankFacts:
    return dataclasses.replace(RankFacts(rank, host, "A100 79.1 GiB", f"gpu-{rank}", 1.0, {}, {}), **changes)


def test_uneven_nodes_are_refused() -> None:
    finding = cluster._check_ranks([facts(0, "a"), facts(1, "a"), facts(2, "b")])
    assert finding.verdict == "fail" and finding.text.endswith("not equally many: a 2, b 1")


def test_devices_must_be_alike_free_and_one_a_rank() -> None:
    pair = [facts(0, "a"), facts(1, "a")]
    assert cluster._check_devices(pair).verdict == "pass"
    shared = cluster._check_devices([pair[0], facts(1, "a", device_id="gpu-0")])
    assert (shared.verdict, shared.text) == ("fail", "one GPU for several ranks: ranks 0-1 on a")
    assert cluster._check_devices([pair[0], facts(1, "b", device_id="gpu-0")]).verdict == "pass"
    mixed = cluster._check_devices([pair[0], facts(1, "a", device="H100 79.1 GiB")])
    assert mixed.verdict == "fail" and "not all alike" in mixed.text
    busy = cluster._check_devices([pair[0], facts(1, "a", free_share=0.5)])
    assert busy.verdict == "warn" and "already in use on ranks 1" in busy.text


def test_gpus_without_one_connection_are_warned_of() -> None:
    assert cluster._check_environment([facts(0, "a")]).verdict == "warn"
    good = facts(0, "a", environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    assert cluster._check_environment([good]).verdict == "pass"


def test_pairs_of_nodes_meet_once() -> None:
    assert rounds_of_pairs(2) == [[(0, 1)]]
    assert rounds_of_pairs(3) == [[(1, 2)], [(0, 2)], [(0, 1)]]
    for nodes in (4, 7, 8, 100):
        rounds = rounds_of_pairs(nodes)
        pairs = [pair for pairs in rounds for pair in pairs]
        assert len(set(pairs)) == len(pairs) and all(a < b for a, b in pairs)
        assert all(len({node for pair in pairs for node in pair}) == 2 * (nodes // 2) for pairs in rounds)
        assert len(rounds) == min(5, nodes - 1 + nodes % 2)


def test_a_slow_node_and_a_slow_link_are_told_apart() -> None:
    assert stand_out({("a", "b"): 1.0, ("a", "c"): 9.0, ("b", "c"): 9.0}) == ["c"]
    assert stand_out({("a", "b"): 1.0, ("a", "c"): 1.0, ("b", "c"): 9.0}) == ["b - c"]
    assert stand_out({("a", "b"): 1.0, ("a", "c"): 1.9, ("b", "c"): 2.0}) == []
    assert stand_out({("a", "b"): 9.0}) == []


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"wrong --device: got 'tpu', need auto, cpu or cuda"):
        cluster.check_cluster(ClusterSettings(device="tpu"))


def test_bus_bandwidth_by_hand() -> None:
    assert bus_gb_per_s("all-reduce", 10**9, 2, 1.0) == 1.0
    assert bus_gb_per_s("all-reduce", 10**9, 4, 0.5) == 3.0
    assert bus_gb_per_s("all-gather", 10**9, 4, 1.0) == 3.0


def test_ranks_are_written_as_ranges() -> None:
    assert ranges_of([5, 0, 1, 2]) == "0-2, 5" and ranges_of([3]) == "3" and ranges_of([]) == ""


def test_verdict_names_what_failed() -> None:
    findings = [Finding("clocks", "fail", "7 s"), Finding("ranks", "pass", "2"), Finding("devices", "warn", "busy")]
    assert not is_ready(findings) and format_findings(findings).splitlines()[-1] == "NOT READY: clocks"
    assert is_ready(findings[1:]) and format_findings(findings[1:]).splitlines()[-1] == "READY"


def test_lost_rank_ends_the_check_with_an_error(tmp_path: Path) -> None:
    """Rank 0 of two, alone: the other never comes."""
    place = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    flags = ["--device", "cpu", "--directory", tmp_path, "--timeout-minutes", "0.03"]
    done = run_tool("check_cluster", *flags, **place)
    assert done.returncode == 1
    assert "error: ranks lost each other" in done.stderr and "Traceback" not in done.stderr


def test_torchrun_gets_the_verdict_and_the_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tools" / "check_cluster.py"), "--device", "cpu", "--message-mib", "1"]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "READY" and done.stdout.count("versions") == 1
