"""A functional PTX interpreter: executes what Triton and nvcc emit on CPU memory, and checks it."""
