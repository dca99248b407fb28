"""Draws docs/demo_run.png from a finished `make demo`: loss by source over the mixture that was drawn.

.venv/bin/python docs/plot_demo_run.py runs/demo/train
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_huatuo.inspect.report_data import gather_report

report = gather_report(Path(sys.argv[1]), None, [])
assert report.planned is not None
figure = Figure(figsize=(10, 5.2))
FigureCanvasAgg(figure)
loss, mixture = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
last = report.losses[0].x[-1]
for number, curve in enumerate(report.losses_by_source):
    known = ~np.isnan(curve.y)
    loss.plot(curve.x[known] / last, curve.y[known], color=f"C{number}", label=curve.name, linewidth=1.2)
loss.set(ylabel="training loss", ylim=(0, None), xlim=(0, 1))
loss.legend(ncols=5, frameon=False, loc="upper right")
loss.grid(alpha=0.25)
loss.set_title("One stage: each source is learnt when the priority order draws it (make demo, 2 million parameters)")
colors = [f"C{number}" for number in range(len(report.sources))]
mixture.stackplot(report.planned[0], report.planned[1].T, colors=colors, alpha=0.85)
mixture.set(xlabel="progress of the run", ylabel="share of the documents", ylim=(0, 1), xlim=(0, 1))
figure.tight_layout()
figure.savefig(Path(__file__).parent / "demo_run.png", dpi=90)
