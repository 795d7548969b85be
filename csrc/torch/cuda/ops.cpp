#include "torch/cuda/ops.h"

namespace ops = deepl0::torch_ops::on_cuda;

#ifdef DEEPL0_CUDA_EMULATED
STABLE_TORCH_LIBRARY(deepl0_emulated, m) {
#else
STABLE_TORCH_LIBRARY(deepl0_cuda, m) {
#endif
    m.def("top_m(Tensor u, int m, bool positive) -> (Tensor, Tensor)");
    m.def("keep_top_m(Tensor u, int m, bool positive) -> (Tensor, Tensor)");
    m.def("unpool(Tensor values, Tensor indices, int size) -> Tensor");
    m.def("apply_mask(Tensor u, Tensor mask) -> Tensor");
    m.def("batch_top_m(Tensor u, int m, bool positive) -> (Tensor, Tensor, Tensor)");
    m.def(
        "gather_top_m(Tensor wx, Tensor values, Tensor indices, Tensor St, bool positive)"
        " -> (Tensor, Tensor)");
    m.def("transpose(Tensor matrix) -> Tensor");
    m.def("gather_rows(Tensor values, Tensor indices, Tensor w, bool wide) -> Tensor");
    m.def("row_dots(Tensor indices, Tensor w, Tensor x) -> Tensor");
    m.def("group(Tensor indices, int units) -> (Tensor, Tensor, Tensor)");
    m.def("combine(Tensor start, Tensor unit, Tensor entry, Tensor c, Tensor x) -> Tensor");
    m.def(
        "outer(Tensor start, Tensor entry, Tensor c, Tensor indices, Tensor values,"
        " Tensor(a!) out, bool accumulate) -> ()");
    m.def(
        "outer_atomic(Tensor rows, Tensor c, Tensor indices, Tensor values, Tensor(a!) out,"
        " bool accumulate) -> ()");
    m.def("product_on_support(Tensor upper, Tensor c, Tensor lower, Tensor s) -> Tensor");
    m.def("probe(int device) -> ()");
}

namespace {

template <class Library>
void implement(Library& m) {
    m.impl("top_m", TORCH_BOX(&ops::top_m));
    m.impl("keep_top_m", TORCH_BOX(&ops::keep_top_m));
    m.impl("unpool", TORCH_BOX(&ops::unpool));
    m.impl("apply_mask", TORCH_BOX(&ops::apply_mask));
    m.impl("batch_top_m", TORCH_BOX(&ops::batch_top_m));
    m.impl("gather_top_m", TORCH_BOX(&ops::gather_top_m));
    m.impl("transpose", TORCH_BOX(&ops::transpose));
    m.impl("gather_rows", TORCH_BOX(&ops::gather_rows));
    m.impl("row_dots", TORCH_BOX(&ops::row_dots));
    m.impl("group", TORCH_BOX(&ops::group));
    m.impl("combine", TORCH_BOX(&ops::combine));
    m.impl("outer", TORCH_BOX(&ops::outer));
    m.impl("outer_atomic", TORCH_BOX(&ops::outer_atomic));
    m.impl("product_on_support", TORCH_BOX(&ops::product_on_support));
}

}  // namespace

#ifdef DEEPL0_CUDA_EMULATED
STABLE_TORCH_LIBRARY_IMPL(deepl0_emulated, CPU, m) { implement(m); }
// Tensors without data: the launches of a call at any size are recorded, and nothing runs.
STABLE_TORCH_LIBRARY_IMPL(deepl0_emulated, Meta, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(deepl0_emulated, CompositeExplicitAutograd, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(deepl0_cuda, CUDA, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(deepl0_cuda, CompositeExplicitAutograd, m) {
#endif
    m.impl("probe", TORCH_BOX(&ops::probe));
}
