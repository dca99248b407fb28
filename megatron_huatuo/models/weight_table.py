"""Names and shapes of all weights of an architecture: megatron-core <-> Hugging Face, one table for both directions."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_huatuo.models.architecture import Architecture
from megatron_huatuo.models.families import get_family
from megatron_huatuo.models.weight_rules import WeightRule, single_rule


def weight_rules(architecture: Architecture) -> list[WeightRule]:
    """Rules for every weight of an architecture, in the order in which they are written."""
    table = (architecture.vocab_size, architecture.hidden_size)
    rules = [single_rule("embedding.word_embeddings.weight", "model.embed_tokens.weight", table)]
    rules += get_family(architecture.family).layer_rules(architecture)
    rules.append(single_rule("decoder.final_layernorm.weight", "model.norm.weight", table[1:], sharded=False))
    if not architecture.tied_embeddings:
        rules.append(single_rule("output_layer.weight", "lm_head.weight", table))
    return rules


def each_weight(architecture: Architecture) -> Iterator[tuple[WeightRule, int]]:
    """(rule, layer) of every megatron tensor, embedding first, then layer by layer; layer 0 where there is none."""
    rules = weight_rules(architecture)
    embedding, *after = [rule for rule in rules if not rule.per_layer]
    yield embedding, 0
    for layer in range(architecture.num_layers):
        yield from ((rule, layer) for rule in rules if rule.per_layer)
    yield from ((rule, 0) for rule in after)


def hf_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every Hugging Face tensor, in the order in which they are written."""
    return {
        name: shape
        for rule, layer in each_weight(architecture)
        for name, shape in zip(rule.part_names(layer), rule.part_shapes, strict=True)
    }


def rule_of_parameter(name: str, rules: dict[str, WeightRule]) -> tuple[WeightRule, int] | None:
    """Rule of a parameter by its name in a model's state dict, with the number of its layer in that model chunk.

    rules: by module name; see `rules_by_parameter`.
    """
    if name.startswith("decoder.layers."):
        number, rest = name.removeprefix("decoder.layers.").split(".", 1)
        return (rules[rest], int(number)) if rest in rules else None
    return (rules[name], 0) if name in rules else None


def rules_by_parameter(architecture: Architecture) -> dict[str, WeightRule]:
    """Rules by parameter name (without the layer): names of the local specification and of Transformer Engine's."""
    rules = weight_rules(architecture)
    found = {rule.module_name: rule for rule in rules}
    found |= {rule.key.removeprefix("decoder.layers."): rule for rule in rules}
    if architecture.tied_embeddings:  # the last pipeline stage holds a copy of the embedding under this name
        found["output_layer.weight"] = found["embedding.word_embeddings.weight"]
    return found
