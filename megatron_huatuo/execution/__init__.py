"""Independent tasks of a stage in local processes, as a SLURM array, or on Ray."""

from megatron_huatuo.execution.executors import ExecutorSettings

__all__ = ["ExecutorSettings"]
