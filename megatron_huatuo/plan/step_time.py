"""Time of one optimizer step, derived from the layers' times, the pipeline, data parallelism and the optimizer.

Pipelines: the slowest stage runs all micro-batches, and the first and last of them pass through every other stage once,
divided by the chunks of a stage (Narayanan et al. 2021, section 2.2). Gradients are reduced beside the backward pass of
the last micro-batch, weights gathered beside the forward pass of the first; what does not fit beside them is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_huatuo.plan.efficiency import Constants
from megatron_huatuo.plan.gpus import Gpu
from megatron_huatuo.plan.layer_time import LayerModel, Parts
from megatron_huatuo.plan.links import Links
from megatron_huatuo.plan.workload import Workload

# Of a pass that communication can hide behind: the first or last bucket has nothing left to run beside.
_HIDING_SHARE = 0.9
# Bytes of one weight of the shard in an Adam step: gradient, float32 weight and two moments in; those and bf16 out.
_ADAM_BYTES = 30
# Bytes of one gradient of the rank: cleared, and read for the norm.
_GRADIENT_BYTES = 8


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest rank, by what they are spent on."""

    products: float
    attention: float
    elementwise: float
    tensor_parallel: float
    recomputation: float
    pipeline: float
    """Bubbles and transfers between stages."""
    data_parallel: float
    """Gradients and weights that are waited for, or that slow down what runs beside them."""
    optimizer: float
    host: float
    """Launches that the GPU waits for, and what is outside of forward, backward and update."""

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Seconds by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Stage:
    """One micro-batch on one pipeline stage."""

    forward: float
    backward: float
    again: float
    parts: Parts
    """Forward and backward, recomputation left out."""

    @property
    def total(self) -> float:
        return self.forward + self.backward


def step_time(workload: Workload, gpu: Gpu, links: Links, constants: Constants | None = None) -> StepTime:
    """Predict a step. The workload is one that could run: shapes divide, precision exists on the GPU."""
    constants = constants or Constants()
    model = LayerModel(workload, gpu, links, constants)
    stages = _stages(model)
    slowest = max(range(len(stages)), key=lambda index: stages[index].total)
    stage, count = stages[slowest], workload.num_microbatches
    sharded = workload.sharded_over > 1
    bubbles = sum(other.total for index, other in enumerate(stages) if index != slowest) / workload.chunks
    transfers = _transfers_s(model)
    parallel = _sharded_s(model, stage) if sharded else _data_parallel_s(model, stage)
    return StepTime(
        products=count * stage.parts.products,
        attention=count * stage.parts.attention,
        elementwise=count * stage.parts.elementwise,
        tensor_parallel=count * stage.parts.tensor_parallel,
        recomputation=count * stage.again,
        pipeline=bubbles + transfers,
        data_parallel=parallel,
        optimizer=_optimizer_s(model),
        host=count * stage.parts.host + constants.step_s,
    )


def _stages(model: LayerModel) -> list[_Stage]:
    """First to last; embedding lookups are left out, the last one has the output layer."""
    work = model.workload
    layer, head = model.layer(), model.head()
    layers = work.architecture.num_layers / work.pipeline_parallel
    found = []
    for index in range(work.pipeline_parallel):
        last = index == work.pipeline_parallel - 1
        parts = (layer.forward + layer.backward) * layers + ((head.forward + head.backward) if last else Parts())
        forward = layers * layer.forward.total + (head.forward.total if last else 0.0)
        backward = layers * layer.backward_total + (head.backward.total if last else 0.0)
        found.append(_Stage(forward, backward, layers * layer.again, parts))
    return found


def _transfers_s(model: LayerModel) -> float:
    """Activations and their gradients between stages: beside products when chunks interleave, waited for otherwise."""
    work = model.workload
    if work.pipeline_parallel == 1:
        return 0.0
    width = 4 if work.precision == "fp32" else 2
    message = width * work.tokens * work.architecture.hidden_size / work.outside_division
    ranks_of_a_stage = work.tensor_parallel * work.context_parallel * work.data_parallel
    one = model.links.transfer_s(message, ranks_of_a_stage)
    share = model.constants.overlap_loss if work.chunks > 1 else 1.0
    return 2 * work.num_microbatches * work.chunks * one * share


def _rank_weights(work: Workload) -> float:
    """Weights of the largest stage's rank; norms and biases do not matter here."""
    architecture = work.architecture
    query = architecture.num_attention_heads * architecture.head_dim
    key_value = architecture.num_query_groups * architecture.head_dim
    layer = architecture.hidden_size * (2 * query + 2 * key_value + 3 * architecture.ffn_hidden_size)
    ends = 2 if work.pipeline_parallel == 1 and not architecture.tied_embeddings else 1
    weights = layer * architecture.num_layers / work.pipeline_parallel
    return (weights + ends * architecture.vocab_size * architecture.hidden_size) / work.tensor_parallel


def _data_parallel_s(model: LayerModel, stage: _Stage) -> float:
    work, links = model.workload, model.links
    ranks = work.data_parallel * work.context_parallel
    weights = _rank_weights(work)
    reduce = links.gather_s(work.gradient_bytes * weights, ranks, work.tensor_parallel)
    width = 4 if work.precision == "fp32" else 2
    gather = links.gather_s(width * weights, ranks, work.tensor_parallel)
    loss = model.constants.overlap_loss
    if work.overlap_grad_reduce:
        reduce = max(loss * reduce, reduce - _HIDING_SHARE * stage.backward)
    if work.overlap_param_gather:
        gather = max(loss * gather, gather - _HIDING_SHARE * stage.forward)
    return reduce + gather


def _sharded_s(model: LayerModel, stage: _Stage) -> float:
    """FSDP: weights are gathered for each pass of each micro-batch and gradients scattered after it; copies of the
    shards, if there are several, agree on their gradients by all-reduce."""
    work, links, loss = model.workload, model.links, model.constants.overlap_loss
    weights, ranks = _rank_weights(work), work.sharded_over
    gather = links.gather_s(2 * weights, ranks, work.tensor_parallel)
    scatter = links.gather_s(work.gradient_bytes * weights, ranks, work.tensor_parallel)
    copies = work.data_parallel // ranks
    shard = work.gradient_bytes * weights / ranks
    agree = 2 * links.gather_s(shard, copies, links.gpus_per_node)
    forward = max(loss * gather, gather - stage.forward)
    backward = max(loss * (gather + scatter + agree), gather + scatter + agree - stage.backward)
    return work.num_microbatches * (forward + backward)


def _optimizer_s(model: LayerModel) -> float:
    work = model.workload
    weights = _rank_weights(work)
    shards = work.sharded_over if work.sharded_over > 1 else work.data_parallel * work.context_parallel
    gradients = weights / work.sharded_over
    eager = 1.0 if work.fused else 2.0  # moments, decay and update in loops of their own
    moved = _ADAM_BYTES * eager * weights / shards + _GRADIENT_BYTES * gradients
    return moved / model.constants.memory_bytes_per_s(model.gpu)
