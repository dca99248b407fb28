"""The Slurm that these tests start leaves nothing behind, also when a person interrupts them in the middle of a job."""

from __future__ import annotations

import psutil
import pytest

from tests.slurm.cluster import NODES, missing_packages, running_cluster, wait_until

pytestmark = pytest.mark.slurm


def test_an_interrupted_test_leaves_neither_steps_nor_tasks(tmp_path_factory: pytest.TempPathFactory) -> None:
    if missing := missing_packages():
        pytest.skip(f"a real Slurm needs Debian packages: apt-get install {' '.join(missing)}")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.raises(KeyboardInterrupt), running_cluster(folder) as cluster:
        cluster.run("sbatch", "--nodes=2", f"--output={folder}/said", "--wrap=srun sleep 600")
        wait_until(
            lambda: len(cluster.processes("sleep", node=NODES[1])) == 1,
            60,
            lambda: f"{cluster.processes()} {[path.read_text() for path in folder.glob('said')]} {cluster.logs()}",
        )
        [task] = cluster.processes("sleep", node=NODES[1])
        step = task.parent()
        assert step is not None and step.name() == "slurmstepd"
        raise KeyboardInterrupt
    assert not [left for left in (task, step) if left.is_running() and left.status() != psutil.STATUS_ZOMBIE]
