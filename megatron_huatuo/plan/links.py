"""Links between GPUs, and how long a collective takes over them.

Times follow the ring: an all-gather or reduce-scatter of n ranks moves (n - 1) / n of the whole message over each rank's
link. A ring enters and leaves a node once; NCCL lays one through every network adapter, so a group with g members in
each node has g adapters, up to what the links inside the node carry (nccl-tests' bus bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.errors import ConfigError
from megatron_huatuo.plan.efficiency import Constants
from megatron_huatuo.plan.gpus import Gpu

# Bytes per second of one GPU, one direction: one adapter per GPU, as in DGX and HGX nodes.
NETWORKS = {
    "ib-hdr": 25e9,
    "ib-ndr": 50e9,
    "ib-xdr": 100e9,
    "roce-100": 12.5e9,
    "roce-200": 25e9,
    "roce-400": 50e9,
    "ethernet-25": 3.125e9,
}
_DEFAULT = {"ampere": "ib-hdr", "hopper": "ib-ndr", "blackwell": "ib-ndr"}  # of NVIDIA's own nodes
_START_S = 20e-6  # of a collective, by nccl-tests on H100


def network_bytes_per_s(name: str | None, gpu: Gpu) -> tuple[str, float]:
    """(name, bytes a second of one GPU) of a network; None: that of NVIDIA's own nodes with this GPU.

    Raises: ConfigError naming the networks that are known.
    """
    chosen = _DEFAULT[gpu.generation] if name is None else name
    if chosen not in NETWORKS:
        raise ConfigError(
            f"unknown network: got {chosen!r}, need one of {', '.join(NETWORKS)}, or give --network-gb-per-s (--network)."
        )
    return chosen, NETWORKS[chosen]


@dataclass(frozen=True)
class Links:
    """What the links of a cluster carry, as large collectives reach it."""

    gpus_per_node: int
    node_bytes_per_s: float
    """Of one GPU to its node, one direction."""
    network_bytes_per_s: float
    """Of one GPU's adapter, one direction."""

    @classmethod
    def of(cls, gpu: Gpu, network_bytes_per_s: float, gpus_per_node: int, constants: Constants) -> Links:
        """From data sheets: the share of a link's rate that collectives reach is one constant."""
        return cls(gpus_per_node, gpu.link_bytes_per_s * constants.links, network_bytes_per_s * constants.links)

    def group_bytes_per_s(self, ranks: int, stride: int) -> float:
        """Bus bandwidth of a group whose members lie `stride` ranks apart."""
        in_node = max(1, min(ranks, self.gpus_per_node // stride)) if stride < self.gpus_per_node else 1
        if ranks <= in_node:
            return self.node_bytes_per_s
        return min(self.node_bytes_per_s, in_node * self.network_bytes_per_s)

    def gather_s(self, message_bytes: float, ranks: int, stride: int) -> float:
        """Seconds of an all-gather or reduce-scatter; message_bytes: the gathered message. An all-reduce takes two."""
        if ranks < 2:
            return 0.0
        return _START_S + message_bytes * (ranks - 1) / ranks / self.group_bytes_per_s(ranks, stride)

    def transfer_s(self, message_bytes: float, stride: int) -> float:
        """Seconds of a transfer from one pipeline stage to the next, `stride` ranks away."""
        rate = self.node_bytes_per_s if stride < self.gpus_per_node else self.network_bytes_per_s
        return _START_S + message_bytes / rate
