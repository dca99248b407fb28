"""Conversations to token ids: chat format, tokenizers, and the parallel index build."""
