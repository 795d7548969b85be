"""Triton kernels for NVIDIA and AMD GPUs, one module per operator file of ``ops``.

Importing this package imports no triton: ``deepl0_kernels.backends`` loads the module of an
operator with its first call.
"""
