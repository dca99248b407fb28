"""What the model sees of a packed row: documents apart from each other, and the loss of what is trained on."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.engine import make_config, read_log, train_rank
from tests.distributed.runner import run_ranks


def build(config: Any):
    """(rows, model) of one rank, as a run has them."""
    from megatron_huatuo.dataset.rows import PackedRows
    from megatron_huatuo.parallel.host import enable_device
    from megatron_huatuo.parallel.process_groups import initialize_process_groups
    from megatron_huatuo.train.setup import build_training

    device = enable_device("cpu")
    initialize_process_groups(config.parallel, device)
    training = build_training(config, config.model.architecture(), device, 10)
    return PackedRows(config.data.blend), training.chunks[0]


def run_model(model: Any, rows: list[Any], *, isolate: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(logits [rows, L, vocabulary], losses [rows, L])."""
    from megatron_huatuo.dataset.batch import build_batch
    from megatron_huatuo.dataset.row_block import stack_rows

    batch = build_batch(stack_rows(rows), torch.device("cpu"), isolate_documents=isolate)
    inputs = (batch.tokens, None, None)
    with torch.no_grad():
        logits = model(*inputs, packed_seq_params=batch.packed_seq_params)
        losses = model(*inputs, labels=batch.labels, packed_seq_params=batch.packed_seq_params)
    return logits.numpy(), losses.numpy()


def _change_each_document(config: Any) -> int:
    """In one of two rows change one document after the other; returns how many were tried."""
    rows, model = build(config)
    number = max(range(len(rows)), key=lambda row: len(rows.documents_of(row)))
    row, other = rows.row(number), rows.row(number + 1)
    before = run_model(model, [row, other])
    bounds = row.document_bounds
    for start, end in itertools.pairwise(bounds):
        tokens = row.tokens.copy()
        tokens[start:end] = (tokens[start:end] + 7) % 2000 + 3
        after = run_model(model, [dataclasses.replace(row, tokens=tokens), other])
        outside = np.ones(len(tokens), bool)
        outside[start:end] = False
        for old, new in zip(before, after, strict=True):
            assert np.array_equal(old[0][outside], new[0][outside]), f"document {start}:{end} is seen by others"
            assert np.array_equal(old[1], new[1]), "a row is seen by another row"
            assert not np.array_equal(old[0][start:end], new[0][start:end]), "the change is not seen at all"
    return len(bounds) - 1


def _change_first_document_of_a_plain_row(config: Any) -> bool:
    rows, model = build(config)
    row = rows.row(0)
    tokens = row.tokens.copy()
    end = row.document_bounds[1]
    tokens[:end] = (tokens[:end] + 7) % 2000 + 3
    old, _ = run_model(model, [row], isolate=False)
    new, _ = run_model(model, [dataclasses.replace(row, tokens=tokens)], isolate=False)
    return np.array_equal(old[0][end:], new[0][end:])


@pytest.fixture
def config(tmp_path: Path, sample_blend: Path, small_model: Path):
    model = {"preset": None, "hf": str(small_model)}
    return make_config(tmp_path / "run", sample_blend, model=model, training={"train_iters": 1})


def test_no_attention_across_documents(config) -> None:
    assert run_ranks(1, _change_each_document, config)[0] >= 4


def test_without_isolation_later_documents_see_earlier_ones(config) -> None:
    assert run_ranks(1, _change_first_document_of_a_plain_row, config) == [False]


def _losses_of_first_batch(config: Any) -> list[list[tuple[int, float]]]:
    """[(source, loss) of every trained token] of each row of the first step."""
    rows, model = build(config)
    result = []
    for number in range(config.training.global_batch_size):
        row = rows.row(number)
        _, losses = run_model(model, [row])
        trained = np.flatnonzero(row.loss_mask)
        result.append([(int(row.source_of_token[place]), float(losses[0][place])) for place in trained])
    return result


def test_loss_is_the_sum_over_the_trained_tokens_of_all_ranks(config, sample_blend: Path) -> None:
    run_ranks(2, train_rank, config)
    [line] = read_log(config.run_dir)
    [by_row] = run_ranks(1, _losses_of_first_batch, config)
    counts = [len(tokens) for tokens in by_row]
    assert len(set(counts)) > 1, "rows with unequal numbers of trained tokens tell a sum from a mean of means"
    losses = [loss for tokens in by_row for _, loss in tokens]
    mean_of_means = np.mean([np.mean([loss for _, loss in tokens]) for tokens in by_row])
    assert line["lm_loss"] == pytest.approx(sum(losses) / sum(counts), abs=1e-6)
    assert line["lm_loss"] != pytest.approx(mean_of_means, abs=1e-5)
    for source, name in enumerate(("sft", "books", "web")):
        of_source = [loss for tokens in by_row for number, loss in tokens if number == source]
        assert line["trained_tokens_by_source"][name] == len(of_source)
        assert line["loss_by_source"].get(name, 0.0) == pytest.approx(np.mean(of_source) if of_source else 0, abs=1e-6)


def _with_and_without_other_logits(config: Any) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(losses, gradient by weight) of two rows: first with logits of every position, then of the trained ones alone."""
    from megatron_huatuo.dataset.batch import build_batch

    rows, model = build(config)
    batch = build_batch(rows.read([0, 1]), torch.device("cpu"))
    trained = torch.nonzero(batch.loss_mask.t().flatten()).flatten()
    assert 0 < len(trained) < batch.loss_mask.numel()
    results = []
    for positions in (None, trained):
        for weight in model.parameters():
            weight.main_grad.zero_()
            weight.grad = None
        losses = model(
            batch.tokens,
            None,
            None,
            labels=batch.labels,
            packed_seq_params=batch.packed_seq_params,
            loss_positions=positions,
        )
        (losses * batch.loss_mask).sum().backward()
        gradients = {
            name: (weight.main_grad if weight.grad is None else weight.main_grad + weight.grad).numpy().copy()
            for name, weight in model.named_parameters()
        }
        results.append((losses.detach().numpy(), gradients))
    assert not results[1][0][batch.loss_mask.numpy() == 0].any()
    results[0][0][batch.loss_mask.numpy() == 0] = 0
    return results


@pytest.mark.parametrize(("ranks", "sequence_parallel"), [(1, False), (2, True), (2, False)])
def test_logits_of_untrained_positions_change_neither_loss_nor_gradient(config, ranks: int, sequence_parallel: bool):
    config.parallel.tensor_model_parallel_size = ranks
    config.parallel.sequence_parallel = sequence_parallel
    for (losses, gradients), (fewer_losses, fewer_gradients) in run_ranks(
        ranks, _with_and_without_other_logits, config
    ):
        np.testing.assert_allclose(fewer_losses, losses, atol=1e-6, rtol=1e-6)
        assert losses.any()
        for name, gradient in gradients.items():
            largest = np.abs(gradient).max()
            assert largest > 0, name
            np.testing.assert_allclose(fewer_gradients[name], gradient, atol=1e-5 * largest, err_msg=name)
