"""A functional PTX interpreter: executes what Triton and nvcc emit on CPU memory, and checks it.

    engine.launch(kernel, grid, args, constants, num_warps, num_stages, target=80)
    engine.run_ptx(text, name, grid, block_threads, args, shared_bytes)
    with engine.intercept(target=90): kernel[grid](...)  # unchanged code
    mutate.survivors(text, run_and_check, mutate.mutants(text))

It raises (errors.py) on accesses out of bounds or misaligned, races between warps, divergent
barriers, *_sync with missing lanes, use of unfinished cp.async or wgmma, missing fences, reads of
registers or shared memory never written.

What it does not see: the order of memory operations within one warp (lanes run in lockstep, as far
as control flow lets them), spinning on another block (blocks run one after the other), acquire and
release (plain accesses they would order within a block count as races; pass
Options(cross_block=False) for kernels whose blocks hand data over), TMA, mbarrier, clusters.
"""
