"""A stand-in for SLURM: `sbatch` runs datatrove's own launch script for every task of the array at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.kill import ROOT

SCRIPTS = "sbatch.log"
OUTPUT = "sbatch.log.out"
SBATCH = """#!/usr/bin/env bash
# Runs the tasks of an array at once, as a cluster would later.
script="${@: -1}"
array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cat "$script" >> "$SBATCH_LOG"
if ! grep -q merge_stats "$script"; then
  for rank in $(seq 0 "$array"); do
    SLURM_ARRAY_TASK_ID=$rank SLURM_NODELIST=node1 RUN_OFFSET=0 bash "$script" >> "$SBATCH_LOG.out" 2>&1
  done
fi
echo "Submitted batch job 17"
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""
SCONTROL = "#!/usr/bin/env bash\necho node1\n"


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the programs on the PATH; what was submitted is in `folder`/SCRIPTS, what the tasks said in `folder`/OUTPUT."""
    programs = folder / "bin"
    programs.mkdir()
    for name, content in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SBATCH_LOG", str(folder / SCRIPTS))
