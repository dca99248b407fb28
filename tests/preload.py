"""What the fork server of the suite loads once, so that no test pays for it again."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


import megatron_huatuo.corpus.merge
import megatron_huatuo.corpus.pipeline
import megatron_huatuo.execution.executors
import megatron_huatuo.train.loop
import megatron_huatuo.unify.merge
import megatron_huatuo.unify.model
import megatron_huatuo.unify.shard  # noqa: F401
