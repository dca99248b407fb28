"""The engine gives the curve of the recipe as a page of plain PyTorch: packed rows, AdamW, cosine, clipping.

Nothing of the project's model, data loading or training is used here; only files are read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from megatron_huatuo.models.hf_config import load_architecture
from megatron_huatuo.storage.indexed import IndexedReader
from tests.distributed.engine import make_config, read_log, train_rank
from tests.distributed.runner import run_ranks
from tests.unit.convert.small_models import write_model

STEPS, BATCH, DECAY_STEPS, WARMUP_STEPS = 20, 4, 25, 3
LR, MIN_LR, BETAS, EPS, WEIGHT_DECAY, CLIP = 2e-3, 1e-4, (0.9, 0.98), 1e-8, 0.1, 0.5
HIDDEN, HEADS, GROUPS, HEAD_DIM, LAYERS, NORM_EPS, THETA = 64, 4, 2, 16, 4, 1e-6, 1e4


def read_rows(blend: Path) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """[(tokens, modes) of each document] of each row."""
    manifest = json.loads((blend / "manifest.json").read_text())
    indexes = [IndexedReader(source["path_prefix"]) for source in manifest["sources"]]
    source, document, start = (
        np.load(blend / f"{name}.npy") for name in ("order_source", "order_document", "row_start")
    )
    return [
        [indexes[source[entry]].document(int(document[entry])) for entry in range(start[row], start[row + 1])]
        for row in range(len(start) - 1)
    ]


def loss_of_document(weights: dict[str, torch.Tensor], tokens: np.ndarray, modes: np.ndarray, eos: int = 2):
    """(sum of losses, number of trained tokens) of one document, which sees nothing but itself."""
    inputs, targets, trained = [], [], []
    for place in range(len(tokens) - 1):
        ends_answer = modes[place] == 1 and modes[place + 1] == 0  # of an earlier turn: it shall stop here
        inputs.append(int(tokens[place]))
        targets.append(eos if ends_answer else int(tokens[place + 1]))
        trained.append(bool(modes[place + 1] == 1 or ends_answer))
    logits = forward(weights, torch.tensor(inputs))
    losses = F.cross_entropy(logits, torch.tensor(targets), reduction="none")
    return losses[torch.tensor(trained)].sum(), sum(trained)


def forward(weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] of a Llama."""
    hidden = weights["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        part = {
            name.removeprefix(f"model.layers.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        hidden = hidden + attend(part, norm(hidden, part["input_layernorm.weight"]))
        inner = norm(hidden, part["post_attention_layernorm.weight"])
        gate = F.silu(inner @ part["mlp.gate_proj.weight"].T)
        hidden = hidden + (gate * (inner @ part["mlp.up_proj.weight"].T)) @ part["mlp.down_proj.weight"].T
    return norm(hidden, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + NORM_EPS) * weight


def attend(part: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    length = len(hidden)
    query, key, value = (
        (hidden @ part[f"self_attn.{name}_proj.weight"].T).view(length, -1, HEAD_DIM).transpose(0, 1) for name in "qkv"
    )
    query, key = rotate(query), rotate(key)
    key, value = (tensor.repeat_interleave(HEADS // GROUPS, dim=0) for tensor in (key, value))
    scores = query @ key.transpose(1, 2) / math.sqrt(HEAD_DIM)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    context = scores.softmax(-1) @ value
    return context.transpose(0, 1).reshape(length, -1) @ part["self_attn.o_proj.weight"].T


def rotate(heads: torch.Tensor) -> torch.Tensor:
    """Rotary positions, halves of a head as real and imaginary part."""
    frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(heads.shape[1]).float(), frequencies)
    real, imaginary = heads.chunk(2, dim=-1)
    return torch.cat(
        [real * angles.cos() - imaginary * angles.sin(), imaginary * angles.cos() + real * angles.sin()], dim=-1
    )


def learning_rate(step: int) -> float:
    """Of step 0, 1, …: linear warm-up from zero, then cosine."""
    if step <= WARMUP_STEPS:
        return LR * step / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (DECAY_STEPS - WARMUP_STEPS)
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def train_plainly(weights: dict[str, torch.Tensor], rows: list) -> list[tuple[float, float]]:
    """(loss, gradient norm before clipping) of every step."""
    parameters = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    matrices = [weight for weight in parameters.values() if weight.dim() > 1]
    vectors = [weight for weight in parameters.values() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    curve = []
    for step in range(STEPS):
        parts = [loss_of_document(parameters, *doc) for row in rows[BATCH * step : BATCH * (step + 1)] for doc in row]
        loss = sum(total for total, _ in parts) / sum(count for _, count in parts)
        optimizer.zero_grad()
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        curve.append((loss.item(), gradient_norm.item()))
    return curve


@pytest.mark.slow
def test_the_engine_gives_the_curve_of_the_plain_recipe(tmp_path: Path, sample_blend: Path, small_model: Path) -> None:
    directory = write_model(tmp_path / "hf", load_architecture(small_model))
    config = make_config(
        tmp_path / "run",
        sample_blend,
        model={"preset": None, "hf": str(directory), "init_from": str(directory)},
        training={"train_iters": STEPS, "global_batch_size": BATCH},
        optimizer={"lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "weight_decay": WEIGHT_DECAY, "clip_grad": CLIP},
        schedule={"decay_iters": DECAY_STEPS, "warmup_fraction": WARMUP_STEPS / DECAY_STEPS, "min_lr": MIN_LR},
    )
    run_ranks(2, train_rank, config)
    log = read_log(tmp_path / "run")
    curve = train_plainly(load_file(directory / "model.safetensors"), read_rows(sample_blend))
    assert curve[-1][0] < curve[0][0] - 0.5
    assert sum(gradient_norm > CLIP for _, gradient_norm in curve) >= 5, "clipping must matter"
    for step, (line, (loss, gradient_norm)) in enumerate(zip(log, curve, strict=True)):
        assert line["learning_rate"] == pytest.approx(learning_rate(step), rel=1e-12)
        assert line["lm_loss"] == pytest.approx(loss, abs=1e-4), f"step {step + 1}"
        assert line["grad_norm"] == pytest.approx(gradient_norm, rel=1e-3), f"step {step + 1}"
