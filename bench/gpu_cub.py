"""CUB's top-k as a rival, compiled from the toolkit's headers where they have it.

``python -m bench.gpu_cub --out FOLDER`` compiles; CUB's headers have DeviceBatchedTopK and
DeviceTopK from CCCL 3.3 (3.2) on. DEEPL0_CCCL names the folder of other headers than the toolkit's.
Rows of one length are one batch, with the bounds that the benchmarks' shapes have at compile time.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import cuda_toolkit

# (p, m) of the batched kernel; the single problem takes any size.
BATCHED = ((512, 32), (4096, 32))

SOURCE = r"""
#include <cuda/std/cstdint>
#include <cuda_bf16.h>
#include <cub/cub.cuh>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#if __has_include(<cub/device/device_batched_topk.cuh>)
#include <cub/device/device_batched_topk.cuh>
#define BATCHED 1
#endif
#include <cub/device/device_topk.cuh>
#include <cuda/std/execution>

template <class T>
struct Row {
    T* data;
    long stride;
    __host__ __device__ T* operator()(long row) const { return data + row * stride; }
};
struct Columns {
    __host__ __device__ thrust::counting_iterator<int> operator()(long) const {
        return thrust::counting_iterator<int>(0);
    }
};
template <class F>
auto each(F f) {
    return thrust::make_transform_iterator(thrust::counting_iterator<long>(0), f);
}
auto careless(cudaStream_t stream) {
    return cuda::std::execution::env{
        cuda::stream_ref{stream},
        cuda::execution::require(cuda::execution::determinism::not_guaranteed,
#ifdef BATCHED
                                 cuda::execution::tie_break::unspecified,
#endif
                                 cuda::execution::output_ordering::unsorted)};
}

#ifdef BATCHED
template <class T, int P, int M>
int batched(const T* keys, T* out, int* index, long rows, void* work, size_t* bytes,
            cudaStream_t stream) {
    return cub::DeviceBatchedTopK::MaxPairs(
        work, *bytes, each(Row<const T>{keys, P}), each(Row<T>{out, M}), each(Columns{}),
        each(Row<int>{index, M}), cuda::args::constant<P>{}, cuda::args::constant<M>{}, rows,
        careless(stream));
}
#endif

#define DEFINE(NAME, T)                                                                     \
    extern "C" int top_k_##NAME(const void* keys, void* out, int* index, long rows, long p, \
                                long m, void* work, size_t* bytes, cudaStream_t stream) {   \
        const T* k = static_cast<const T*>(keys);                                           \
        T* o = static_cast<T*>(out);                                                        \
        BATCHED_SHAPES(T)                                                                   \
        if (rows != 1) return -1;                                                           \
        return cub::DeviceTopK::MaxPairs(work, *bytes, k, o,                                \
                                         thrust::counting_iterator<int>(0), index, p, m,    \
                                         careless(stream));                                 \
    }
#ifdef BATCHED
#define SHAPE(T, P, M) \
    if (p == P && m == M) return batched<T, P, M>(k, o, index, rows, work, bytes, stream);
#else
#define SHAPE(T, P, M)
#endif
#define BATCHED_SHAPES(T) @SHAPES@
DEFINE(float32, float)
DEFINE(bfloat16, __nv_bfloat16)
"""


def source() -> str:
    return SOURCE.replace("@SHAPES@", " ".join(f"SHAPE(T, {p}, {m})" for p, m in BATCHED))


def headers(toolkit: cuda_toolkit.Toolkit) -> Path | None:
    """The folder with CUB's top-k, or None."""
    named = os.environ.get("DEEPL0_CCCL")
    for folder in (named and Path(named), toolkit.include / "cccl", toolkit.include):
        if folder and (folder / "cub/device/device_topk.cuh").exists():
            return folder
    return None


def compile_to(folder: Path, arch: str) -> str:
    """What came of it, in words; ``arch`` as in 9.0."""
    toolkit = cuda_toolkit.find()
    found = toolkit and headers(toolkit)
    if not toolkit or not found:
        return "no CUB with a top-k among the toolkit's headers (CCCL 3.2 or later)"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cub.cu").write_text(source())
    part = folder / "cub.part"
    command = [
        toolkit.nvcc, "-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", f"-I{found}",
        *cuda_toolkit.flags(cuda_toolkit.archs(arch)), folder / "cub.cu", "-o", part,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)
    part.replace(folder / "cub.so")
    return f"compiled against {found}"


@functools.cache
def _library() -> ctypes.CDLL | None:
    folder = os.environ.get("DEEPL0_CUB")
    path = Path(folder) / "cub.so" if folder else None
    if path is None or not path.exists():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # of another toolkit: this rival is left out
        return None


def top_k(u: torch.Tensor, m: int) -> Callable | None:
    """CUB's top m of the rows of such a ``u`` as (values, indices), or None where it has none."""
    library = _library()
    rows, p = u.shape
    if library is None or u.device.type != "cuda" or (rows > 1 and (p, m) not in BATCHED):
        return None
    function = getattr(library, f"top_k_{str(u.dtype).removeprefix('torch.')}")

    def call(keys: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = keys.new_empty(rows, m), keys.new_empty(rows, m, dtype=torch.int32)
        size = ctypes.c_size_t(0)
        work = None
        for _ in range(2):  # the first call asks for the size of the workspace
            status = function(
                *map(ctypes.c_void_p, (keys.data_ptr(), values.data_ptr(), indices.data_ptr())),
                ctypes.c_long(rows), ctypes.c_long(p), ctypes.c_long(m),
                ctypes.c_void_p(None if work is None else work.data_ptr()), ctypes.byref(size),
                ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
            )  # fmt: skip
            if status:
                raise RuntimeError(f"CUB's top-k failed with CUDA error {status}")
            if work is None:
                work = torch.empty(max(1, size.value), dtype=torch.uint8, device=keys.device)
        return values, indices

    return call


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arch", default="9.0")
    arguments = parser.parse_args()
    try:
        print(compile_to(arguments.out, arguments.arch))
    except subprocess.CalledProcessError as error:
        sys.exit(f"nvcc ended with {error.returncode}: this CUB is no rival")
