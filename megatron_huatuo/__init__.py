"""megatron_huatuo: one-stage medical adaptation of language models on megatron-core."""

__version__ = "0.1.0"
