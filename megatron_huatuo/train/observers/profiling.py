"""torch's profiler over chosen steps: one trace a rank, to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_huatuo.log import get_logger


class StepProfiler:
    """Records the steps [first, last] of `logging.profile_steps` into profile/ of the run directory."""

    def __init__(self, steps: list[int], run_dir: Path, rank: int, device: torch.device) -> None:
        self._first, self._last = steps or (0, 0)
        self._path = run_dir / "profile" / f"steps_{self._first}_{self._last}_rank{rank}.json.gz"
        self._device = device
        self._profile: torch.profiler.profile | None = None

    def before_step(self, iteration: int) -> None:
        """Start recording when step `iteration` (counted from 1) is the first one."""
        if self._profile is None and self._first <= iteration <= self._last:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after_step(self, iteration: int) -> None:
        """Write the trace when step `iteration` was the last one."""
        if self._profile is not None and iteration >= self._last:
            self.close()

    def close(self) -> None:
        """End a recording that the run's end cut short, too."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(self._path))
        except OSError as error:
            get_logger(__name__).error("trace not written: %s", error)
