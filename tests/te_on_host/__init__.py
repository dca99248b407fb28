"""The project's training with Transformer Engine's and flash-attn's own Python, on a machine without a GPU.

Real are the libraries' Python, from layers to the choice of a kernel, Transformer Engine's C++ that says which kernels of
cuDNN fit, and cuDNN's version. `device.py` sends CUDA's names to the CPU, `kernels.py` and `stand_ins/` compute what the
CUDA kernels would, `fake_device.c` tells the C++ which device there is. Not shown: numerics, speed and memory of CUDA kernels,
NCCL, the buffers of overlapping communication, fp8 products.
"""
