"""Every family against an oracle that shares no code with it, on every kind of layout: logits, losses, gradients.

Both compute in float32, and no case differs by 1e-5 or more, so none needs an oracle in float64.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.runner import run_ranks
from tests.unit.convert.small_models import SMALL, oracle_logits, write_model

LAYOUTS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2), "tp2 pp2": (2, 2)}
# A head is never split: five heads over two ranks are refused (tests/unit/model/test_build.py). Six give each rank three.
CASES = [
    (name, layout) for name in SMALL for layout, (tp, _) in LAYOUTS.items() if SMALL[name].num_attention_heads % tp == 0
]
DOCUMENTS = [10, 14, 24]  # two packed rows of 24 tokens: 10 + 14, and 24


def _tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randint(0, 160, (2, 24), generator=generator) for _ in range(2))


def _write_oracle(directory: Path, name: str) -> None:
    tokens, labels = _tokens()
    documents = list(tokens.flatten().split(DOCUMENTS))
    logits, weights = oracle_logits(directory, SMALL[name], documents, torch.float32)
    loss = torch.nn.functional.cross_entropy(torch.cat(logits), labels.flatten(), reduction="none")
    loss.sum().backward()
    content = {
        "logits": torch.cat(logits).detach(),
        "loss": loss.detach(),
        "gradients": {key: weight.grad for key, weight in weights.items()},
    }
    torch.save(content, directory / "oracle.pt")


def _compare(directory: str, name: str, tp: int, pp: int) -> dict[str, float]:
    """One rank: largest errors of its logits, its losses and each of its gradients."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    from megatron_huatuo.checkpoint.load_hf import load_hf_weights
    from megatron_huatuo.models.core.build_model import build_model
    from megatron_huatuo.models.weight_table import rule_of_parameter, rules_by_parameter
    from megatron_huatuo.parallel.host import enable_host

    enable_host()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    architecture = SMALL[name]
    model = build_model(
        architecture,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        sequence_parallel=tp > 1,
        perform_initialization=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        calculate_per_token_loss=True,
    )
    load_hf_weights([model], directory, architecture)
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    wrapped.zero_grad_buffer()
    model.config.finalize_model_grads_func = finalize_model_grads
    tokens, labels = _tokens()
    cu = torch.tensor([0, *torch.tensor(DOCUMENTS).cumsum(0).tolist()], dtype=torch.int32)
    packed = PackedSeqParams("sbhd", cu, cu, max_seqlen_q=max(DOCUMENTS), max_seqlen_kv=max(DOCUMENTS))
    seen = {}

    def forward_step(_, chunk):
        if parallel_state.is_pipeline_last_stage():
            hook = model.output_layer.register_forward_hook(lambda *call: seen.update(logits=call[2][0].clone()))
        losses = chunk(tokens, None, None, labels=labels, packed_seq_params=packed)
        if parallel_state.is_pipeline_last_stage():
            hook.remove()
        # As in training: the sum of losses, the number of tokens, and what to report. Every data-parallel rank sees the
        # same rows, so that the gradient of the sum over ranks divided by all tokens is that of one rank's mean.
        return losses, lambda values: (values.sum(), torch.tensor(values.numel()), {"loss": values.detach()})

    reduced = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=None,
        model=[wrapped],
        num_microbatches=1,
        seq_length=24,
        micro_batch_size=2,
        forward_only=False,
    )
    oracle = torch.load(f"{directory}/oracle.pt")
    rank = parallel_state.get_tensor_model_parallel_rank()
    errors = {}
    if parallel_state.is_pipeline_last_stage():
        expected = oracle["logits"].chunk(tp, dim=-1)[rank]
        errors["logits"] = (seen["logits"].transpose(0, 1).flatten(0, 1) - expected).abs().max().item()
        errors["loss"] = (reduced[0]["loss"].flatten() - oracle["loss"]).abs().max().item()
    rules = rules_by_parameter(architecture)

    def read(part: str, axis: int, start: int, stop: int) -> torch.Tensor:
        return oracle["gradients"][part].narrow(axis, start, stop - start)

    for key, parameter in model.named_parameters():
        rule, local = rule_of_parameter(key, rules)
        layer = model.decoder.layers[local].layer_number - 1 if rule.per_layer else 0
        expected = rule.gather(read, layer, rank, tp) / labels.numel()
        errors[key] = ((parameter.main_grad - expected).norm() / expected.norm()).item()
    return errors


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_packed_logits_losses_and_gradients_equal_the_oracle(tmp_path: Path, name: str, layout: str) -> None:
    tp, pp = LAYOUTS[layout]
    directory = write_model(tmp_path / "hf", SMALL[name])
    _write_oracle(directory, name)
    for errors in run_ranks(max(2, tp * pp), _compare, str(directory), name, tp, pp):
        assert max(errors.values()) < 1e-5, {key: error for key, error in errors.items() if error >= 1e-5}
