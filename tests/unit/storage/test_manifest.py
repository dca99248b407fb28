"""Manifests: what they prove, and what they refuse."""

from __future__ import annotations

import json
import random

import pytest

from megatron_huatuo.errors import DataError, IntegrityError
from megatron_huatuo.storage.manifest import (
    check_replaceable,
    fingerprint,
    read_json,
    read_manifest,
    sealed,
    sha256_file,
    verify_files,
    write_json,
    write_manifest,
)


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    (root / "a.bin").write_bytes(bytes(range(256)) * 40)
    (root / "b.txt").write_text("血压")
    write_manifest(root, "corpus", {"seed": 7}, ["b.txt", "a.bin"])
    return root


def test_a_manifest_names_kind_version_files_and_content(directory):
    manifest = read_manifest(directory, "corpus")
    assert (manifest["kind"], manifest["format_version"], manifest["seed"]) == ("corpus", 1, 7)
    assert list(manifest["files"]) == ["a.bin", "b.txt"]
    assert manifest["files"]["b.txt"] == {"bytes": 6, "sha256": sha256_file(directory / "b.txt")}
    verify_files(directory, manifest)


def test_content_cannot_replace_the_header(directory):
    with pytest.raises(AssertionError, match="must not replace the header"):
        write_manifest(directory, "corpus", {"files": {}})


def test_every_flipped_bit_is_found(directory):
    manifest = read_manifest(directory, "corpus")
    moments = random.Random(3)
    for _ in range(100):
        path = directory / moments.choice(["a.bin", "b.txt"])
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError, match=rf"differs from its manifest.*{path.name}"):
            verify_files(directory, manifest)
        path.write_bytes(content)
    verify_files(directory, manifest)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "file is missing.*a.bin"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "wrong size: got 10239 bytes, need 10240.*a.bin"),
        (lambda path: path.write_bytes(b""), "wrong size: got 0 bytes"),
    ],
)
def test_missing_and_truncated_files_are_found_without_hashing(damage, message, directory):
    damage(directory / "a.bin")
    with pytest.raises(IntegrityError, match=message):
        verify_files(directory, read_manifest(directory, "corpus"), hashes=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file is incomplete or not JSON"),
        ('{"kind": "corp', "file is incomplete or not JSON"),
        ("[]", "wrong kind of directory: got None"),
        ('{"kind": "blend", "format_version": 1, "files": {}}', "wrong kind of directory: got 'blend', need 'corpus'"),
        ('{"kind": "corpus", "format_version": 9, "files": {}}', "unknown format version: got 9, need 1"),
        ('{"kind": "corpus", "format_version": 1}', "no list of files"),
    ],
)
def test_a_wrong_manifest_is_refused(content, message, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(IntegrityError, match=message):
        read_manifest(tmp_path, "corpus")


def test_an_edited_manifest_is_refused_unless_it_is_sealed_again_or_never_was(directory):
    path = directory / "manifest.json"
    manifest = read_json(path)
    write_json(path, {**manifest, "seed": 8})
    with pytest.raises(IntegrityError, match=r"manifest is damaged or was edited: .*manifest\.json"):
        read_manifest(directory, "corpus")
    write_json(path, sealed({**manifest, "seed": 8}))
    assert read_manifest(directory, "corpus")["seed"] == 8
    write_json(path, {key: value for key, value in manifest.items() if key != "manifest_sha256"})
    assert read_manifest(directory, "corpus")["seed"] == 7


@pytest.mark.parametrize(
    "content", [{"pair": (1, 2)}, {"share": 0.1 + 0.2}, {"by_number": {10: "a", 9: "b"}}, {"名": "血压"}]
)
def test_a_seal_holds_whatever_json_makes_of_the_content(content, tmp_path):
    write_manifest(tmp_path, "corpus", content)
    assert set(content) <= set(read_manifest(tmp_path, "corpus"))


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(IntegrityError, match=r"file is missing.*manifest\.json"):
        read_manifest(tmp_path, "corpus")


def test_json_is_written_without_nan_and_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"血": [1, None]})
    assert read_json(tmp_path / "a.json") == {"血": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_fingerprints_depend_on_content_not_on_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"}) != fingerprint({"a": 2})


def test_only_own_output_may_be_replaced(directory, tmp_path):
    check_replaceable(tmp_path / "new", "corpus")
    check_replaceable(directory, "corpus")
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", "corpus")
    for path in (tmp_path, directory / "b.txt"):
        with pytest.raises(DataError, match="output exists and is not a directory of kind"):
            check_replaceable(path, "corpus")
    with pytest.raises(DataError, match="output exists"):
        check_replaceable(directory, "unified")


def test_torn_output_of_an_unknown_writer_is_not_replaced(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "kind": "thesis"}))
    with pytest.raises(DataError, match="output exists"):
        check_replaceable(directory, "corpus")
