"""Which rows a step takes, by hand and for every division among ranks."""

from __future__ import annotations

import pytest

from megatron_huatuo.dataset.batch_layout import BatchLayout
from megatron_huatuo.errors import ConfigError


def test_rows_of_a_micro_batch_by_hand() -> None:
    layout = BatchLayout(global_batch_size=8, micro_batch_size=2, data_parallel_rank=1, data_parallel_size=2)
    assert layout.num_microbatches == 2
    assert [list(layout.rows(16, microbatch)) for microbatch in range(2)] == [[18, 19], [22, 23]]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_a_step_takes_the_same_rows_on_any_number_of_ranks(micro_batch_size: int, ranks: int) -> None:
    if 12 % (micro_batch_size * ranks):
        with pytest.raises(ConfigError, match=r"wrong training.global_batch_size: got 12, need a multiple"):
            BatchLayout(12, micro_batch_size, 0, ranks)
        return
    layouts = [BatchLayout(12, micro_batch_size, rank, ranks) for rank in range(ranks)]
    for consumed in (0, 12, 2**31):
        in_time = [  # micro-batches one after the other, ranks side by side
            row
            for microbatch in range(layouts[0].num_microbatches)
            for layout in layouts
            for row in layout.rows(consumed, microbatch)
        ]
        assert in_time == list(range(consumed, consumed + 12))


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "works"), [(10, 4, 2, 8), (3, 4, 2, 8), (127, 1, 8, 128), (0, 1, 1, 1)]
)
def test_a_batch_that_does_not_divide_names_one_that_does(batch: int, micro: int, ranks: int, works: int) -> None:
    with pytest.raises(ConfigError, match=rf"got {batch}, need a multiple .* = {micro} × {ranks}. Use {works}\."):
        BatchLayout(batch, micro, 0, ranks)
    BatchLayout(works, micro, 0, ranks)
