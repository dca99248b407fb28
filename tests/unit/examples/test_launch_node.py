"""examples/launch_node.sh and the run.sh of each size: the command that they start, and what they refuse."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
# Options of torch.distributed.run, from the file in each version's published wheel: {version: {wheel, sha256_of_run_py,
# options: {names: type of the value, or "nothing"}}}.
TORCHRUN = json.loads((Path(__file__).parent / "torchrun_options.json").read_text())


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """An interpreter that writes down its arguments and environment."""
    path = tmp_path / "python"
    names = "OMP_NUM|CUDA_DEVICE|PYTORCH_CUDA|TORCH_ELASTIC|PYTHONPATH"
    path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@"\nenv | grep -E "^({names})"\n')
    path.chmod(0o755)
    return path


def start(script: str, python: Path | str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "PYTHON": str(python)}
    return subprocess.run(
        [EXAMPLES / script, *arguments], env={**base, **environment}, capture_output=True, text=True, timeout=60
    )


def several_nodes(tmp_path: Path, **changes: str) -> dict[str, str]:
    """Environment of node 1 with everything that becomes an option of torchrun."""
    return {"NODE_RANK": "1", "MASTER_ADDR": "a", "LOG_DIR": str(tmp_path), "LOCAL_ADDR": "b", **changes}


def test_one_node_starts_standalone_with_eight_ranks(fake_python: Path) -> None:
    lines = start("huatuo2_7b/run.sh", fake_python, "--training.train_iters", "3").stdout.splitlines()
    assert lines[:7] == ["-m", "torch.distributed.run", "--nproc-per-node", "8", "--max-restarts", "3", "--standalone"]
    assert lines[7:12] == [
        str(ROOT / "tools" / "train.py"),
        "--config",
        str(EXAMPLES / "huatuo2_7b" / "train.yaml"),
        "--training.train_iters",
        "3",
    ]
    assert set(lines[12:]) == {
        "OMP_NUM_THREADS=1",
        "CUDA_DEVICE_MAX_CONNECTIONS=1",
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600",
        f"PYTHONPATH={ROOT}",
    }


def test_time_to_save_after_sigterm_is_told_by_the_environment(fake_python: Path) -> None:
    lines = start("huatuo2_7b/run.sh", fake_python, SHUTDOWN_TIMEOUT="90").stdout.splitlines()
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90" in lines and not any("shutdown" in line for line in lines)


def test_the_same_launcher_looks_at_the_machines(fake_python: Path) -> None:
    lines = start("launch_node.sh", fake_python, "check", "--directory", "runs", MAX_RESTARTS="3").stdout.splitlines()
    assert lines[2:10] == ["--nproc-per-node", "8", "--max-restarts", "0", "--standalone",
                           str(ROOT / "tools" / "check_cluster.py"), "--directory", "runs"]  # fmt: skip


def test_the_checkout_comes_before_an_installed_package(fake_python: Path) -> None:
    assert f"PYTHONPATH={ROOT}:/theirs" in start("huatuo2_7b/run.sh", fake_python, PYTHONPATH="/theirs").stdout


@pytest.mark.parametrize(("rank", "is_host"), [("0", "true"), ("1", "false")])
def test_several_nodes_meet_at_the_master(fake_python: Path, rank: str, is_host: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs with space"
    environment = {"NODE_RANK": rank, "MASTER_ADDR": "node-a", "MASTER_PORT": "29400", "LOG_DIR": str(logs)}
    lines = start("huatuo2_13b/run.sh", fake_python, **environment).stdout.splitlines()
    pairs = dict(itertools.pairwise(lines))
    assert pairs["--nnodes"] == "2" and pairs["--rdzv-endpoint"] == "node-a:29400"
    assert pairs["--rdzv-backend"] == "c10d" and pairs["--rdzv-conf"] == f"is_host={is_host}"
    assert pairs["--log-dir"] == f"{logs}/node_{rank}" and logs.joinpath(f"node_{rank}").is_dir()
    assert "--local-addr" not in lines


def test_a_node_can_be_known_by_another_name(fake_python: Path, tmp_path: Path) -> None:
    def local_addr(**environment: str) -> str:
        lines = start("huatuo2_13b/run.sh", fake_python, MASTER_ADDR="a", NODE_RANK="1", **environment).stdout
        return dict(itertools.pairwise(lines.splitlines()))["--local-addr"]

    assert local_addr(HOST_SUFFIX="i") == os.uname().nodename.partition(".")[0] + "i"
    assert local_addr(LOCAL_ADDR="10.0.0.7", HOST_SUFFIX="i") == "10.0.0.7"


def test_several_nodes_without_a_master_are_refused(fake_python: Path) -> None:
    done = start("huatuo2_13b/run.sh", fake_python)
    assert done.returncode == 2 and "MASTER_ADDR is not set" in done.stderr


def test_a_master_that_this_node_cannot_resolve_is_refused_in_one_sentence() -> None:
    done = start("huatuo2_13b/run.sh", sys.executable, NODE_RANK="1", MASTER_ADDR="no-such-node.invalid")
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert (
        "cannot resolve MASTER_ADDR: got 'no-such-node.invalid'" in line and "need a name that every node knows" in line
    )


def test_a_port_that_is_taken_is_refused_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = start("huatuo2_13b/run.sh", sys.executable, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert f"cannot listen on MASTER_PORT of {socket.gethostname()}: got {port}" in line and "need a free port" in line


@pytest.mark.parametrize(("nodes", "config"), [("4", "train.yaml"), ("8", "train_64gpu.yaml")])
def test_34b_takes_the_config_of_its_number_of_nodes(fake_python: Path, nodes: str, config: str) -> None:
    lines = start("huatuo2_34b/run.sh", fake_python, NNODES=nodes, MASTER_ADDR="a").stdout.splitlines()
    assert lines[lines.index("--config") + 1] == str(EXAMPLES / "huatuo2_34b" / config)


class StrictParser(argparse.ArgumentParser):
    """torchrun's parser with a version's recorded options: no abbreviations, and an error instead of an exit."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(allow_abbrev=False, add_help=False)
        kinds = {"str": str, "int": int, "float": float}
        for names, kind in options.items():
            if kind == "nothing":
                self.add_argument(*names.split(), action="store_true")
            else:
                self.add_argument(*names.split(), type=kinds[kind])
        self.add_argument("training_script")
        self.add_argument("training_script_args", nargs=argparse.REMAINDER)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


@pytest.mark.parametrize("version", TORCHRUN)
def test_torchrun_of_every_version_takes_the_command_line(fake_python: Path, tmp_path: Path, version: str) -> None:
    """torch 2.7 to 2.13: the images of megatron-core 0.16's time hold 2.7 to 2.11."""
    for script, environment in (
        ("huatuo2_7b/run.sh", {}),
        ("huatuo2_7b/run.sh", {"LOG_DIR": str(tmp_path), "SHUTDOWN_TIMEOUT": "90"}),
        ("huatuo2_34b/run.sh", several_nodes(tmp_path)),
    ):
        lines = start(script, fake_python, **environment).stdout.splitlines()
        command = lines[2 : lines.index("--config") + 2]
        arguments = StrictParser(TORCHRUN[version]["options"]).parse_args(command)
        assert arguments.training_script == str(ROOT / "tools" / "train.py")


def test_a_recorded_parser_refuses_what_its_version_did_not_know() -> None:
    command = ["--shutdown-timeout", "600", "train.py"]
    accepted = []
    for version, recorded in TORCHRUN.items():
        try:
            StrictParser(recorded["options"]).parse_args(command)
        except ValueError:
            continue
        accepted.append(version)
    assert accepted == ["2.12.0", "2.13.0"]


def test_options_of_the_launcher_exist_in_the_installed_torchrun(fake_python: Path, tmp_path: Path) -> None:
    """torch's own parser accepts the command line; where its version is recorded, the record is its options."""
    import torch
    from torch.distributed import run

    lines = start("huatuo2_34b/run.sh", fake_python, **several_nodes(tmp_path)).stdout.splitlines()
    parser = run.get_args_parser()
    arguments = parser.parse_args(lines[2 : lines.index("--config") + 2])
    assert (arguments.nnodes, arguments.rdzv_backend, arguments.tee) == ("4", "c10d", "3")
    assert arguments.local_addr == "b"
    recorded = TORCHRUN.get(torch.__version__.partition("+")[0])
    if (
        recorded is not None
        and hashlib.sha256(Path(run.__file__).read_bytes()).hexdigest() == recorded["sha256_of_run_py"]
    ):
        names = {" ".join(action.option_strings) for action in parser._actions if action.option_strings}
        assert names - {"-h --help"} == recorded["options"].keys()


def test_every_variable_that_the_scripts_read_is_in_the_table() -> None:
    table = (ROOT / "docs" / "cluster.md").read_text()
    for script in ("launch_node.sh", "slurm/train.sbatch"):
        read = set(re.findall(r"\$\{([A-Z][A-Z_]+)[:}]", (EXAMPLES / script).read_text()))
        assert {"MASTER_PORT", "GPUS_PER_NODE"} <= read
        ours = {name for name in read if not name.startswith(("SLURM_", "BASH_"))} - {"PYTHONPATH"}
        assert [name for name in sorted(ours) if f"`{name}`" not in table] == []
