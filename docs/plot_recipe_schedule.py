"""Draws docs/recipe_schedule.png: the recipe's nine sources, with the published mixture figure as dots."""

import tempfile
from pathlib import Path

import numpy as np

from megatron_huatuo.blend.order_draws import fresh_draws
from megatron_huatuo.blend.order_plan import OrderPlan
from megatron_huatuo.blend.schedule_counts import Schedule, Segment
from megatron_huatuo.blend.schedule_picture import plot_schedule
from tests.unit.blend.orders import RECIPE_EPOCHS, RECIPE_NAMES, RECIPE_PRIORITIES, RECIPE_SIZES
from tests.unit.blend.test_schedule import PUBLISHED

draws = fresh_draws(RECIPE_SIZES, RECIPE_PRIORITIES, 2024, RECIPE_EPOCHS)
with tempfile.TemporaryDirectory() as folder:
    order = Path(folder) / "order_source.npy"
    np.save(order, OrderPlan(draws).order(0, draws.total)[0])
    schedule = Schedule.of_rows(RECIPE_NAMES, order, [Segment(0, draws.num_draws, draws.priorities)])
points = np.clip(list(PUBLISHED), 0.01, 0.99), np.array(list(PUBLISHED.values()))
plot_schedule(schedule, Path(__file__).parent / "recipe_schedule.png", points, "published figure")
