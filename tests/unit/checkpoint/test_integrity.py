"""A checkpoint is proved sound and harmless before anything of it is loaded."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch

from megatron_huatuo.checkpoint.integrity import verify_checkpoint, verify_harmless
from megatron_huatuo.errors import IntegrityError
from megatron_huatuo.storage.manifest import read_json, read_manifest, write_manifest
from tests.unit.flips import random_flip


@pytest.fixture
def checkpoint(saved_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_checkpoint, tmp_path / saved_checkpoint.name))


def hash_again(checkpoint: Path) -> None:
    """What an attacker does: a manifest that fits the changed files."""
    manifest = read_json(checkpoint / "manifest.json")
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, "checkpoint", {"iteration": manifest["iteration"]}, manifest["files"].keys())


class Malice:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_what_a_run_writes_is_sound_and_complete(saved_checkpoint: Path) -> None:
    saved, manifest = saved_checkpoint, verify_checkpoint(saved_checkpoint)
    on_disk = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert set(manifest["files"]) | {"manifest.json"} == on_disk
    assert {"training.json", "architecture.json", "config.yaml", "state/.metadata", "state/common.pt"} <= on_disk
    assert any(name.startswith("tokenizer/") for name in on_disk)


def test_each_file_is_hashed_by_one_rank(checkpoint: Path) -> None:
    victim = "tokenizer/" + next((checkpoint / "tokenizer").iterdir()).name
    (checkpoint / victim).write_bytes(b"other")
    refused = []
    for rank in range(4):
        try:
            verify_checkpoint(checkpoint, rank=rank, world_size=4)
        except IntegrityError as error:
            refused.append(str(error))
    assert len(refused) == 1 and victim in refused[0]


@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_a_damaged_file_is_named(checkpoint: Path, damage: str) -> None:
    for name in read_manifest(checkpoint, "checkpoint")["files"]:
        path = checkpoint / name
        content = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(content[:-1] if damage == "truncated" else b"")
        with pytest.raises(IntegrityError, match=f"checkpoint file is damaged or missing: .*{name}"):
            verify_checkpoint(checkpoint)
        path.write_bytes(content)
    verify_checkpoint(checkpoint)


def test_no_random_bit_flip_is_accepted(checkpoint: Path) -> None:
    """100 flips spread over all files, each found and named, and only it."""
    draw = random.Random(20)
    names = sorted(read_manifest(checkpoint, "checkpoint")["files"])
    for number in range(100):
        name = names[number % len(names)]
        with random_flip(checkpoint / name, draw), pytest.raises(IntegrityError, match=name):
            verify_checkpoint(checkpoint)
    verify_checkpoint(checkpoint)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "blend", "format_version": 1, "files": {}}'])
def test_a_torn_manifest_is_refused(checkpoint: Path, damage: str) -> None:
    (checkpoint / "manifest.json").write_text(damage)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        verify_checkpoint(checkpoint)


def test_malicious_metadata_is_refused_and_not_executed(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "state" / ".metadata").write_bytes(pickle.dumps(Malice(tmp_path / "trace")))
    hash_again(checkpoint)
    with pytest.raises(IntegrityError, match=r"posix\.mkdir is not on the list of harmless names .*\.metadata"):
        verify_checkpoint(checkpoint)
    assert not (tmp_path / "trace").exists()


def test_malicious_common_state_is_refused_and_not_executed(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"content": Malice(tmp_path / "trace")}, checkpoint / "state" / "common.pt")
    hash_again(checkpoint)
    with pytest.raises(IntegrityError, match=r"would execute code or is damaged: it names posix\.mkdir .*common\.pt"):
        verify_checkpoint(checkpoint)
    assert not (tmp_path / "trace").exists()


def test_a_malicious_object_among_the_tensors_is_refused_and_not_executed(checkpoint: Path, tmp_path: Path) -> None:
    """.metadata may call any stretch of a data file an object, and megatron-core would unpickle it."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    metadata_path = checkpoint / "state" / ".metadata"
    metadata = pickle.loads(metadata_path.read_bytes())
    index, stored = next(iter(metadata.storage_data.items()))
    data = checkpoint / "state" / stored.relative_path
    payload = tmp_path / "payload"
    torch.save(Malice(tmp_path / "trace"), payload)
    metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
    stored.offset, stored.length = data.stat().st_size, payload.stat().st_size
    with open(data, "ab") as handle:
        handle.write(payload.read_bytes())
    metadata_path.write_bytes(pickle.dumps(metadata))
    hash_again(checkpoint)
    with pytest.raises(IntegrityError, match="would execute code or is damaged"):
        verify_checkpoint(checkpoint)
    assert not (tmp_path / "trace").exists()


def test_a_path_out_of_the_checkpoint_is_refused(checkpoint: Path) -> None:
    metadata_path = checkpoint / "state" / ".metadata"
    metadata = pickle.loads(metadata_path.read_bytes())
    for stored in metadata.storage_data.values():
        stored.relative_path = "../../elsewhere.distcp"
    metadata_path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(IntegrityError, match="names a file outside of the checkpoint"):
        verify_harmless(checkpoint)
