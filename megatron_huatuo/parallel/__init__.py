"""Process groups, the layout settings over them, and megatron-core on a host without CUDA."""
