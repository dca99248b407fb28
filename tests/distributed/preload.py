"""What the fork server loads once, so that no rank pays for it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import megatron_huatuo.train.loop  # noqa: F401
