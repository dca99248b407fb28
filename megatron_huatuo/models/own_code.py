"""The project's own Python file for Baichuan2: laid into an export, and known again there by its hash.

Invariant: what lies in a model directory is never run because of its name. A directory that holds this very file is opened
by the class of this package instead.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from megatron_huatuo.storage.manifest import read_json, sha256_file

_FILE = "modeling_baichuan.py"
_SOURCE = Path(__file__).with_name(_FILE)


def add_own_code(directory: Path, config: dict[str, Any]) -> None:
    """Copy the file into a Hugging Face directory and name its classes in the content of config.json."""
    shutil.copyfile(_SOURCE, directory / _FILE)
    classes = {"AutoConfig": "BaichuanConfig", "AutoModelForCausalLM": "BaichuanForCausalLM"}
    config["auto_map"] = {auto: f"{_SOURCE.stem}.{name}" for auto, name in classes.items()}


def has_own_code(directory: Path) -> bool:
    """Whether a Hugging Face directory is a Baichuan2 whose Python file is the one of this package."""
    found = directory / _FILE
    if not found.is_file() or sha256_file(found) != sha256_file(_SOURCE):
        return False
    return read_json(directory / "config.json").get("model_type") == "baichuan"
