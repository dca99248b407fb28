"""What the fork server of the suite loads once, so that no rank and no tool pays for it again."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files of tests import it, and so does every rank that runs one of their functions: 0.3 s of processor time.
import pytest  # noqa: F401

# torch's optimizers load it when the first one is made: a second of processor time in each rank.
import torch._dynamo  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM  # noqa: F401 (lazily loaded)

import megatron_huatuo.convert.publish
import megatron_huatuo.corpus.merge_shards
import megatron_huatuo.corpus.steps
import megatron_huatuo.execution.executors
import megatron_huatuo.train.loop
import megatron_huatuo.unify.output_merge
import megatron_huatuo.unify.run_shard
import megatron_huatuo.unify.writers.writer_model  # noqa: F401

# A collection in a rank would look through all of the above, 0.4 s each, and so copy its pages.
gc.collect()
gc.freeze()
