"""Tasks on a real Ray cluster, two nodes on this machine: the bytes of a local run, errors as they are, no endless wait."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from megatron_huatuo.corpus import curate
from megatron_huatuo.errors import ConfigError, DataError, HuatuoError
from megatron_huatuo.execution import ExecutorSettings
from tests.unit.execution.curation import FILES, assert_equal, find_worker, write_inputs


@pytest.fixture(scope="module")
def cluster():
    """Started once for all tests here: it takes seconds."""
    ray = pytest.importorskip("ray", reason="ray is an extra: pip install ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    nodes.shutdown()


def on_ray(inputs, output, **settings):
    execution = ExecutorSettings(executor="ray", **{"workers": 2, "memory_gib": 1, **settings})
    return curate([f"{inputs}/*.jsonl"], output, execution=execution)


@pytest.mark.usefixtures("cluster")
def test_bytes_are_those_of_a_local_run(tmp_path):
    inputs = write_inputs(tmp_path / "in", 3, 30)
    curate([f"{inputs}/*.jsonl"], tmp_path / "local")
    assert on_ray(inputs, tmp_path / "out")["documents_in"] == 90
    assert_equal(tmp_path / "out", {name: (tmp_path / "local" / name).read_bytes() for name in FILES})


@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_task_is_raised_and_finished_tasks_are_kept(tmp_path):
    inputs = write_inputs(tmp_path / "in", 3, 5)
    good = (inputs / "2.jsonl").read_bytes()
    (inputs / "2.jsonl").write_text("torn\n")
    with pytest.raises(DataError, match=r"malformed JSON.*2\.jsonl:1"):
        on_ray(inputs, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    (inputs / "2.jsonl").write_bytes(good)
    assert on_ray(inputs, tmp_path / "out")["documents_in"] == 15


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_an_error(tmp_path):
    inputs = write_inputs(tmp_path / "in", 2, 20_000)
    killer = threading.Thread(target=lambda: find_worker(os.getpid(), tmp_path / "out").kill(), daemon=True)
    killer.start()
    with pytest.raises(HuatuoError, match=r"a Ray worker died.*Run the same command again"):
        on_ray(inputs, tmp_path / "out")
    killer.join()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cluster")
def test_a_task_larger_than_every_machine_is_refused(tmp_path):
    inputs = write_inputs(tmp_path / "in", 1, 1)
    with pytest.raises(ConfigError, match="need 1 CPU and --memory-gib 1000000"):
        on_ray(inputs, tmp_path / "out", memory_gib=1_000_000)


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package ray: pip install ray"):
        on_ray(write_inputs(tmp_path / "in", 1, 1), tmp_path / "out")
