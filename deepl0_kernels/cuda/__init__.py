"""CUDA C++ kernels of the compiled extension, one module per operator file of ``ops``.

The kernels stand in csrc/cuda, their operators (``torch.ops.deepl0_cuda``) in csrc/torch/cuda; here
they are put together to the operators of ``torch.ops.deepl0``. What is served, and when, stands in
``deepl0_kernels.backends``.
"""
