"""A tool in a process of its own, forked from the suite's server, which has loaded torch, transformers and megatron-core.

A start takes a tenth of a second instead of 3 to 7 s of processor time. What hangs on the start of an interpreter (its
locale, what it imports) needs a real one: tests/unit/tools/.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.forkserver import CONTEXT

ROOT = Path(__file__).parent.parent


def _tool_main(command: list[str], folder: str, environment: dict[str, str]) -> None:
    os.chdir(ROOT)
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with open(f"{folder}/{name}", "wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def fork_tool(folder: Path | str, name: str, *arguments: object, **environment: str) -> BaseProcess:
    """Start `tools/NAME.py` in the root of the repository. What it says is in the files stdout and stderr of `folder`."""
    command = [str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    process = CONTEXT.Process(target=_tool_main, args=(command, str(folder), environment))
    process.start()
    return process


def run_tool(
    name: str, *arguments: object, timeout_s: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `tools/NAME.py` to its end; its output as text."""
    with tempfile.TemporaryDirectory() as folder:
        process = fork_tool(folder, name, *arguments, **environment)
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(
                f"tools/{name}.py still ran after {timeout_s:g} s: {Path(folder, 'stderr').read_text()[-2000:]}"
            )
        said = [Path(folder, stream).read_text("utf-8") for stream in ("stdout", "stderr")]
        return subprocess.CompletedProcess([name, *arguments], process.exitcode or 0, *said)
