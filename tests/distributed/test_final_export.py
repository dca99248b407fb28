"""`checkpoint.export_hf`: the finished run becomes a Hugging Face directory, whatever went wrong on the way."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import yaml

from megatron_huatuo.config import to_plain
from megatron_huatuo.storage.manifest import read_manifest
from tests.distributed.engine import read_log, read_status
from tests.distributed.runner import started_ranks

TOOL = str(Path(__file__).parents[2] / "tools" / "train.py")


def _tool_rank(arguments: list[str]) -> None:
    sys.argv = [TOOL, *arguments]
    try:
        runpy.run_path(TOOL, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def run_tool(config: Path, steps: int) -> tuple[list[int], str]:
    """(exit codes, output of the first rank) of tools/train.py on two ranks."""
    with started_ranks(2, _tool_rank, ["--config", str(config), "--training.train_iters", str(steps)]) as ranks:
        return ranks.wait(180), ranks.output(0)


def test_a_finished_run_is_exported_by_one_setting(tmp_path: Path, configure) -> None:
    run_dir, hf = tmp_path / "run", tmp_path / "hf"
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(to_plain(configure(run_dir, checkpoint={"export_hf": str(hf)}))), "utf-8")

    (tmp_path / "hf").mkdir()
    (hf / "notes.txt").write_text("somebody else's")
    codes, output = run_tool(config, 2)
    assert codes == [1, 1] and f"output exists and is not a directory of kind 'hf_model': {hf}" in output
    assert not run_dir.exists(), "refused before anything started"
    shutil.rmtree(hf)

    codes, output = run_tool(config, 2)
    assert codes == [0, 0], output
    exported = read_manifest(hf, "hf_model")
    assert exported["checkpoint"]["iteration"] == 2 and exported["parity"]["tensors"] > 0
    assert (hf / "model.safetensors").is_file() or (hf / "model.safetensors.index.json").is_file()

    # The same command again finds everything done.
    codes, output = run_tool(config, 2)
    assert codes == [0, 0] and f"exported already: {hf}" in output
    assert read_manifest(hf, "hf_model") == exported

    # The run goes on; the export of its older state is in the way. The run is finished and whole all the same.
    codes, output = run_tool(config, 4)
    assert codes == [1, 0] and "output directory exists already" in output
    assert "the run is finished and saved. Exporting it; to repeat: " in output
    assert f"convert_checkpoint.py export --checkpoint {run_dir} --hf {hf}" in output
    assert read_status(run_dir) == {"state": "finished", "reason": "all steps done", "iteration": 4}
    assert read_manifest(hf, "hf_model") == exported

    # Out of the way, the same command does the export alone.
    shutil.rmtree(hf)
    written = (run_dir / "log.jsonl").read_bytes()
    codes, output = run_tool(config, 4)
    assert codes == [0, 0], output
    assert read_manifest(hf, "hf_model")["checkpoint"]["iteration"] == 4
    assert (run_dir / "log.jsonl").read_bytes() == written and len(read_log(run_dir)) == 4
