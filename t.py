import torch, time
torch.ops.load_library("/tmp/mb/mb.so")
x=torch.randn(4,4);w=torch.randn(4,4);o=torch.empty(4,4);b=torch.randn(4)
torch.set_num_threads(1)
torch.ops.mbx.bench(x,w,o,b)
def t(n,f):
    best=1e9
    for _ in range(200):
        a=time.perf_counter()
        for _ in range(100): f()
        best=min(best,(time.perf_counter()-a)/100*1e6)
    print(n,round(best,2))
u=torch.randn(2,16)
op=torch.ops.mbx.two.default
t("two op py", lambda: op(u,3,False))
def below():
    with torch._C._AutoDispatchBelowAutograd():
        return op(u,3,False)
t("two op py below", below)
t("topk", lambda: u.topk(4))
t("torch.topk", lambda: torch.topk(u,4))
t("mm", lambda: x@w)
t("empty", lambda: torch.empty(3))
import deepl0_kernels as dk
t("dk.top_m", lambda: dk.top_m(u,4))
t("ops top_m", lambda: torch.ops.deepl0.top_m.default(u,4,False))
