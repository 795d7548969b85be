"""CUDA C++ kernels of the compiled extension.

The kernels stand in csrc/cuda; csrc/torch/cuda puts them together, one operator a pass
(``torch.ops.deepl0_cuda``), and has the rules by which a pass goes its way. Here is what Python has
to do with that. What is served, and when, stands in ``deepl0_kernels.backends``.
"""
