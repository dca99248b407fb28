"""Load Hugging Face weights straight into a model: every rank reads its own slices and nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_huatuo.checkpoint.hf_weight_files import open_weights
from megatron_huatuo.errors import DataError
from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.weight_table import rule_of_parameter, rules_by_parameter


@torch.no_grad()
def load_hf_weights(
    model_chunks: Sequence[GPTModel], hf_directory: str | os.PathLike[str], architecture: Architecture
) -> None:
    """Fill the parameters of this rank's model chunks, converting to their dtype.

    Peak memory: the model and one tensor. Raises: DataError or IntegrityError naming tensor and file.
    """
    files = open_weights(hf_directory, architecture)
    rules = rules_by_parameter(architecture)
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for chunk in model_chunks:
        for name, parameter in chunk.named_parameters():
            found = rule_of_parameter(name, rules)
            if found is None:
                raise DataError(f"parameter {name!r} of the model has no counterpart in Hugging Face's layout.")
            rule, local = found
            layer = chunk.decoder.layers[local].layer_number - 1 if rule.per_layer else 0
            values = rule.gather(files.read, layer, rank, size)
            if values.shape != parameter.shape:
                raise DataError(
                    f"wrong shape of parameter {name!r}: got {list(parameter.shape)}, need {list(values.shape)}. "
                    "Build the model from the same architecture."
                )
            parameter.copy_(values)
