"""How one weight of megatron-core is made of Hugging Face tensors, and the rules of a decoder layer.

Invariant: every megatron tensor is made of row ranges (or column ranges) of Hugging Face tensors, each used once, with
no arithmetic. So one list of ranges serves import, export and every tensor-parallel slice, and a round trip is exact.

Worked example, 4 query heads in 2 groups, head_dim 8: `linear_qkv` is q0 q1 k0 v0 | q2 q3 k1 v1, that is rows 0-15 of
q_proj, 0-7 of k_proj, 0-7 of v_proj, then 16-31 of q_proj, 8-15 of k_proj, 8-15 of v_proj.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_huatuo.models.architecture import Architecture

if TYPE_CHECKING:
    import torch


class Piece(NamedTuple):
    """Rows (or columns) start … stop-1 of the Hugging Face tensor number `part` of a rule."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class WeightRule:
    """One weight of megatron-core, or one per layer, and the Hugging Face tensors that it is made of."""

    key: str
    """Name in a distributed checkpoint, where the tensors of all layers are stacked on a leading axis."""
    module_name: str
    """Name in the model's state dict of the local specification, without "decoder.layers.N."."""
    per_layer: bool
    parts: tuple[str, ...]
    """Hugging Face names; {layer} stands for the number of the layer, from 0."""
    part_shapes: tuple[tuple[int, ...], ...]
    pieces: tuple[Piece, ...]
    """Ranges along `axis` in the order of the whole megatron tensor."""
    axis: int = 0
    sharded: bool = True
    """Split along `axis` over the tensor-parallel ranks (norms are whole on each)."""
    gated: bool = False
    """Each piece is split over the ranks by itself: rank r holds [gate_r ; up_r]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole megatron tensor of one layer."""
        lengths = sum(piece.stop - piece.start for piece in self.pieces)
        return tuple(lengths if axis == self.axis else size for axis, size in enumerate(self.part_shapes[0]))

    def part_names(self, layer: int) -> tuple[str, ...]:
        """Hugging Face names for one layer (any number where the rule has none)."""
        return tuple(part.format(layer=layer) for part in self.parts)

    def rank_pieces(self, rank: int, size: int) -> list[Piece]:
        """Ranges that make the tensor of one of `size` tensor-parallel ranks, in its order."""
        if not self.sharded:
            return list(self.pieces)
        if self.gated:
            return [part for piece in self.pieces for part in _narrow([piece], rank, size)]
        return _narrow(list(self.pieces), rank, size)

    def gather(
        self,
        read: Callable[..., torch.Tensor],
        layer: int,
        rank: int = 0,
        size: int = 1,
        *,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The megatron tensor of one rank.

        read: (Hugging Face name, axis, start, stop) -> that range of the tensor; with `out` it takes `out` as well.
        out: memory for the result, of its shape; by default fresh memory.
        """
        names, pieces = self.part_names(layer), self.rank_pieces(rank, size)
        if out is None:
            parts = [read(names[piece.part], self.axis, piece.start, piece.stop) for piece in pieces]
            import torch  # a family is known without it

            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.axis)
        places = out.split([piece.stop - piece.start for piece in pieces], dim=self.axis)
        for piece, place in zip(pieces, places, strict=True):
            read(names[piece.part], self.axis, piece.start, piece.stop, out=place)
        return out

    def row_ranges(self, layer: int) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """(Hugging Face name, where its rows lie in the whole megatron tensor) of every part.

        Ranges (start, stop) in the order of the part's rows. A rule along columns has one part, whose rows are all.
        """
        ranges: list[list[tuple[int, int, int]]] = [[] for _ in self.parts]
        position = 0
        for part, first, last in self.pieces if self.axis == 0 else (Piece(0, 0, self.shape[0]),):
            ranges[part].append((first, position, position + last - first))
            position += last - first
        for name, places in zip(self.part_names(layer), ranges, strict=True):
            yield name, [(start, stop) for _, start, stop in sorted(places)]


def _narrow(pieces: list[Piece], rank: int, size: int) -> list[Piece]:
    """The rank-th of `size` equal chunks of the concatenated ranges."""
    total = sum(piece.stop - piece.start for piece in pieces)
    low, high = rank * total // size, (rank + 1) * total // size
    chunk, position = [], 0
    for part, start, stop in pieces:
        first, last = max(start, start + low - position), min(stop, start + high - position)
        if first < last:
            chunk.append(Piece(part, first, last))
        position += stop - start
    return chunk


def _query_key_value(a: Architecture, bases: tuple[tuple[int, int], ...]) -> tuple[Piece, ...]:
    """Ranges of linear_qkv: per query group its queries, its key, its value.

    bases: (part, first row) where queries, keys and values begin.
    """
    per_group = a.num_attention_heads // a.num_query_groups * a.head_dim
    rows = (per_group, a.head_dim, a.head_dim)
    return tuple(
        Piece(part, first + group * count, first + (group + 1) * count)
        for group in range(a.num_query_groups)
        for (part, first), count in zip(bases, rows, strict=True)
    )


def layer_rules(
    a: Architecture, *, packed_projection: str | None = None, packed_gate: str | None = None
) -> list[WeightRule]:
    """Rules of one decoder layer in Llama's names.

    packed_projection: name of the one tensor that holds queries, keys and values one after the other; None where each
    has its own. packed_gate: likewise of the one that holds gate and up.
    """
    hidden, ffn = a.hidden_size, a.ffn_hidden_size
    queries, keys = a.num_attention_heads * a.head_dim, a.num_query_groups * a.head_dim
    layer = "model.layers.{layer}."
    if packed_projection is not None:
        projections: tuple[str, ...] = (packed_projection,)
        rows: tuple[int, ...] = (queries + 2 * keys,)
        pieces = _query_key_value(a, ((0, 0), (0, queries), (0, queries + keys)))
    else:
        projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        rows = (queries, keys, keys)
        pieces = _query_key_value(a, ((0, 0), (1, 0), (2, 0)))

    gates: tuple[str, ...] = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
    gate_shapes: tuple[tuple[int, ...], ...] = ((ffn, hidden), (ffn, hidden))
    gate_pieces = (Piece(0, 0, ffn), Piece(1, 0, ffn))
    if packed_gate is not None:
        gates, gate_shapes = (f"{packed_gate}.weight",), ((2 * ffn, hidden),)
        gate_pieces = (Piece(0, 0, ffn), Piece(0, ffn, 2 * ffn))

    def rule(module: str, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], **kwargs: Any) -> WeightRule:
        kwargs.setdefault("pieces", tuple(Piece(i, 0, shape[kwargs.get("axis", 0)]) for i, shape in enumerate(shapes)))
        return WeightRule(
            key=f"decoder.layers.{kwargs.pop('key', module)}",
            module_name=module,
            per_layer=True,
            parts=tuple(layer + name for name in names),
            part_shapes=shapes,
            **kwargs,
        )

    rules = [
        rule(
            "input_layernorm.weight",
            ("input_layernorm.weight",),
            ((hidden,),),
            key="self_attention.linear_qkv.layer_norm_weight",
            sharded=False,
        ),
        rule(
            "self_attention.linear_qkv.weight",
            tuple(f"{name}.weight" for name in projections),
            tuple((count, hidden) for count in rows),
            pieces=pieces,
        ),
    ]
    if a.qkv_bias:
        rules.append(
            rule(
                "self_attention.linear_qkv.bias",
                tuple(f"{name}.bias" for name in projections),
                tuple((count,) for count in rows),
                pieces=pieces,
            )
        )
    if a.qk_norm:
        rules += [
            rule(
                f"self_attention.{ours}_layernorm.weight",
                (f"self_attn.{ours}_norm.weight",),
                ((a.head_dim,),),
                sharded=False,
            )
            for ours in ("q", "k")
        ]
    # The norm before the gated unit is named by what it stands behind, unless one stands there as well.
    before_mlp = "pre_feedforward_layernorm" if a.post_norms else "post_attention_layernorm"
    rules += [
        rule("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), ((hidden, queries),), axis=1),
        rule(
            "pre_mlp_layernorm.weight",
            (f"{before_mlp}.weight",),
            ((hidden,),),
            key="mlp.linear_fc1.layer_norm_weight",
            sharded=False,
        ),
        rule("mlp.linear_fc1.weight", gates, gate_shapes, pieces=gate_pieces, gated=True),
        rule("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), ((hidden, ffn),), axis=1),
    ]
    if a.post_norms:
        rules += [
            rule(f"{name}.weight", (f"{name}.weight",), ((hidden,),), sharded=False)
            for name in ("post_attention_layernorm", "post_feedforward_layernorm")
        ]
    return rules


def single_rule(key: str, name: str, shape: tuple[int, ...], sharded: bool = True) -> WeightRule:
    """Rule of a weight that stands outside the layers and is one Hugging Face tensor."""
    return WeightRule(key, key, False, (name,), (shape,), (Piece(0, 0, shape[0]),), sharded=sharded)
