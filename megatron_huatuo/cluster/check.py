"""Is this set of machines fit for a run? Ranks, devices, versions, clocks, shared files, isolation of documents and bandwidth,
in a minute.

Invariant: every rank reaches the same findings, and the check ends: each wait has a limit.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_huatuo.cluster.cluster_bandwidth import measure_bandwidth
from megatron_huatuo.cluster.cluster_files import check_shared_files
from megatron_huatuo.cluster.cluster_isolation import check_isolation
from megatron_huatuo.cluster.cluster_links import NodeLinks, measure_links
from megatron_huatuo.cluster.cluster_ranks import RankFacts, describe_rank, nodes_of, ranges_of
from megatron_huatuo.cluster.cluster_settings import ClusterSettings, Finding
from megatron_huatuo.errors import ConfigError, HuatuoError


def check_cluster(settings: ClusterSettings, *, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Run all checks; torch.distributed is started from torchrun's environment unless it runs already.

    Raises: ConfigError for settings that cannot be; HuatuoError when a rank is lost.
    """
    device = _device(settings.device)
    starts_groups = not dist.is_initialized()
    try:
        if starts_groups:
            _start(device, settings.timeout_minutes)
        facts: list[RankFacts] = [None] * dist.get_world_size()  # type: ignore[list-item]
        dist.all_gather_object(facts, describe_rank(device))
        findings = [_check_ranks(facts), _check_devices(facts), _check_versions(facts), _check_environment(facts)]
        findings.append(_check_clocks(facts, settings.max_clock_skew_s, clock))
        problem, text = check_shared_files(settings.directory, settings.wait_s)
        findings.append(Finding("shared files", "fail" if problem else "pass", problem or text))
        findings.append(check_isolation(settings.attention, device))
        findings += _check_bandwidth(facts, device, settings)
        return findings
    except (dist.DistError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise HuatuoError(
            f"ranks lost each other: {first_line} (rank {os.environ.get('RANK', '0')}). See that the same command runs "
            "on every node, and that nodes reach MASTER_ADDR:MASTER_PORT and each other."
        ) from error
    finally:
        if starts_groups and dist.is_initialized():
            dist.destroy_process_group()


def _device(setting: str) -> torch.device:
    if setting not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"wrong --device: got {setting!r}, need auto, cpu or cuda.")
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"no GPU for local rank {local_rank}: torch sees {torch.cuda.device_count()}. Start fewer ranks per node."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _start(device: torch.device, timeout_minutes: float) -> None:
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)


def _check_ranks(facts: list[RankFacts]) -> Finding:
    nodes = nodes_of(facts)
    counts = {len(ranks) for ranks in nodes.values()}
    text = f"{len(facts)} ranks on {len(nodes)} nodes"
    if len(counts) > 1:
        uneven = ", ".join(f"{host} {len(ranks)}" for host, ranks in nodes.items())
        return Finding("ranks", "fail", f"{text}, but not equally many: {uneven}")
    return Finding("ranks", "pass", f"{text}, {counts.pop()} each")


def _check_devices(facts: list[RankFacts]) -> Finding:
    owners: dict[tuple[str, str], list[int]] = {}
    for fact in facts:
        if fact.device_id is not None:
            owners.setdefault((fact.host, fact.device_id), []).append(fact.rank)
    shared = [f"ranks {ranges_of(ranks)} on {host}" for (host, _), ranks in owners.items() if len(ranks) > 1]
    if shared:
        return Finding("devices", "fail", f"one GPU for several ranks: {'; '.join(shared)}")
    kinds: dict[str, list[int]] = {}
    for fact in facts:
        kinds.setdefault(fact.device, []).append(fact.rank)
    text = "; ".join(f"{device} (ranks {ranges_of(ranks)})" for device, ranks in kinds.items())
    if len(kinds) > 1:
        return Finding("devices", "fail", f"not all alike: {text}")
    busy = [fact.rank for fact in facts if fact.free_share is not None and fact.free_share < 0.9]
    if busy:
        return Finding("devices", "warn", f"{text}; memory already in use on ranks {ranges_of(busy)}")
    return Finding("devices", "pass", text)


def _differences(facts: list[RankFacts], field: str) -> list[str]:
    """Names of which the ranks have different values, with who has what."""
    names = sorted({name for fact in facts for name in getattr(fact, field)})
    found = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for fact in facts:
            holders.setdefault(getattr(fact, field).get(name, "(none)"), []).append(fact.rank)
        if len(holders) > 1:
            found.append(f"{name}: " + ", ".join(f"{value} on ranks {ranges_of(r)}" for value, r in holders.items()))
    return found


def _check_versions(facts: list[RankFacts]) -> Finding:
    if different := _differences(facts, "versions"):
        return Finding("versions", "fail", "; ".join(different))
    return Finding("versions", "pass", ", ".join(f"{name} {value}" for name, value in facts[0].versions.items()))


def _check_environment(facts: list[RankFacts]) -> Finding:
    if different := _differences(facts, "environment"):
        return Finding("environment", "warn", "; ".join(different))
    settings = facts[0].environment
    text = ", ".join(f"{name}={value}" for name, value in settings.items()) or "nothing set"
    if facts[0].device_id is not None and settings.get("CUDA_DEVICE_MAX_CONNECTIONS") != "1":
        return Finding(
            "environment", "warn", f"CUDA_DEVICE_MAX_CONNECTIONS is not 1: no tensor-parallel overlap; {text}"
        )
    return Finding("environment", "pass", text)


def _check_clocks(facts: list[RankFacts], limit_s: float, clock: Callable[[], float]) -> Finding:
    """Offset of one rank a node from rank 0, by the round trip that was quickest (half of it is the uncertainty)."""
    leaders = [ranks[0] for ranks in nodes_of(facts).values() if ranks[0] != 0] or list(range(1, min(2, len(facts))))
    rank, offsets = dist.get_rank(), {}
    for leader in leaders:
        if rank == 0:
            offsets[leader] = min((_ask_clock(leader, clock) for _ in range(8)), key=lambda pair: pair[1])
        elif rank == leader:
            for _ in range(8):
                _tell_clock(clock)
    shared = [offsets]
    dist.broadcast_object_list(shared, src=0)
    skewed = [
        f"{facts[leader].host} (rank {leader}) is {offset:+.3f} s off (± {uncertainty:.3f} s)"
        for leader, (offset, uncertainty) in shared[0].items()
        if abs(offset) - uncertainty > limit_s
    ]
    if skewed:
        return Finding("clocks", "fail", f"{'; '.join(skewed)}, allowed {limit_s} s. Start NTP or chrony there")
    largest = max((abs(offset) for offset, _ in shared[0].values()), default=0.0)
    return Finding("clocks", "pass", f"within {largest:.3f} s of rank 0")


def _ask_clock(leader: int, clock: Callable[[], float]) -> tuple[float, float]:
    answer = torch.zeros(1, dtype=torch.float64)
    asked = clock()
    dist.send(answer, leader)
    dist.recv(answer, leader)
    answered = clock()
    return answer.item() - (asked + answered) / 2, (answered - asked) / 2


def _tell_clock(clock: Callable[[], float]) -> None:
    message = torch.zeros(1, dtype=torch.float64)
    dist.recv(message, 0)
    message[0] = clock()
    dist.send(message, 0)


def _check_bandwidth(facts: list[RankFacts], device: torch.device, settings: ClusterSettings) -> list[Finding]:
    if len(facts) == 1:
        return [Finding("bandwidth", "warn", "one rank: nothing to measure")]
    mib = settings.message_mib or (256 if device.type == "cuda" else 4)
    findings = []
    for result in measure_bandwidth(nodes_of(facts), device, mib << 20):
        text = f"{result.bus_gb_per_s:.2f} GB/s on the bus, {result.seconds * 1e3:.2f} ms for {mib} MiB per rank"
        verdict = "pass"
        if result.straggler is not None:
            verdict, text = "warn", f"{text}; {result.straggler} is the slowest, at less than half of the others"
        limit = settings.min_bus_gb_per_s
        if limit is not None and result.name == "all-reduce, all ranks" and result.bus_gb_per_s < limit:
            verdict, text = "fail", f"{text}; need {limit:g} (--min-bus-gb-per-s)"
        findings.append(Finding(result.name, verdict, text))
    if len(nodes := nodes_of(facts)) > 1:
        findings.append(_check_links(measure_links(nodes, device, mib << 20), mib))
    return findings


def _check_links(links: NodeLinks, mib: int) -> Finding:
    slowest = max(links.seconds, key=lambda pair: links.seconds[pair])
    rate = (mib << 20) / links.seconds[slowest] / 1e9
    text = f"slowest of {len(links.seconds)} pairs: {slowest[0]} - {slowest[1]}, {rate:.2f} GB/s each way"
    if links.slow:
        return Finding("links", "warn", f"{text}; at less than half of the usual: {', '.join(links.slow)}")
    return Finding("links", "pass", text)


def is_ready(findings: list[Finding]) -> bool:
    """Whether no check failed."""
    return all(finding.verdict != "fail" for finding in findings)


def format_findings(findings: list[Finding]) -> str:
    """One line a check and the verdict."""
    lines = [f"{finding.verdict:4s}  {finding.name:24s}  {finding.text}" for finding in findings]
    failed = [finding.name for finding in findings if finding.verdict == "fail"]
    lines.append(f"NOT READY: {', '.join(failed)}" if failed else "READY")
    return "\n".join(lines)
