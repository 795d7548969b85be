#include "torch/cuda/ops.h"

#include "torch/addresses.h"
#include "torch/cuda/rules.h"

namespace ops = deepl0::torch_ops::on_cuda;

namespace deepl0::torch_ops::on_cuda {

void tell_rules(bool tf32, bool atomics) { tell(tf32, atomics); }
void force_rules(Name way, int64_t elements) { force(way.text.c_str(), elements); }

}  // namespace deepl0::torch_ops::on_cuda

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
    const std::string l0 =
        "(Tensor x, Tensor W, Tensor? S, Tensor? bias, Tensor theta, int num_stages, float sigma,"
        " str kind)";
    const std::string top_m =
        "(Tensor x, Tensor W, Tensor? S, Tensor? bias, int m, int num_stages, bool positive)";
    m.def(("encode_top_m" + top_m + " -> (Tensor, Tensor)").c_str());
    m.def(("encode_top_m_saving" + top_m + " -> (Tensor, Tensor, Tensor, Tensor)").c_str());
    m.def(
        "encode_top_m_backward(Tensor grad_values, Tensor? values, Tensor indices,"
        " Tensor saved_values, Tensor saved_indices, Tensor x, Tensor W, Tensor? S, int mask)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
    const std::string factored =
        "(Tensor x, Tensor W, Tensor D, Tensor? bias, Tensor? step, int[] m, bool positive)";
    m.def(("encode_top_m_factored" + factored + " -> (Tensor, Tensor)").c_str());
    m.def(("encode_top_m_factored_saving" + factored + " -> (Tensor, Tensor, Tensor, Tensor)")
              .c_str());
    m.def(
        "encode_top_m_factored_backward(Tensor grad_values, Tensor? values, Tensor indices,"
        " Tensor saved_values, Tensor saved_indices, Tensor x, Tensor W, Tensor D, Tensor? step,"
        " int[] m, int mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(("encode_l0" + l0 + " -> Tensor").c_str());
    m.def(("encode_l0_saving" + l0 + " -> (Tensor, Tensor)").c_str());
    m.def(
        "encode_l0_backward(Tensor grad_z, Tensor saved, Tensor x, Tensor W, Tensor? S,"
        " Tensor theta, float sigma, str kind, int mask)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("threshold(Tensor u, Tensor theta, float sigma, str kind) -> Tensor");
    m.def(
        "threshold_backward(Tensor grad_out, Tensor u, Tensor theta, float sigma, str kind,"
        " int mask) -> (Tensor, Tensor)");
    m.def("decode(Tensor values, Tensor indices, Tensor D) -> Tensor");
    m.def(
        "decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor D, int mask)"
        " -> (Tensor, Tensor)");
    m.def(
        "omp(Tensor x, Tensor D, int m, float tol, bool positive=False)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
    m.def("least_squares(Tensor gram, Tensor right, Tensor support, float floor) -> Tensor");
    m.def(
        "gather_top_m(Tensor wx, Tensor values, Tensor indices, Tensor St, bool positive)"
        " -> (Tensor, Tensor)");
    m.def(
        "screened_top_m(Tensor x, Tensor W, Tensor? bias, int m, bool positive,"
        " Tensor? z_values=None, Tensor? z_indices=None) -> (Tensor, Tensor)");
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
    m.def("tell_rules(bool tf32, bool atomics) -> ()");
    m.def("force_rules(str way, int elements) -> ()");
    m.def("read_rows_once(bool on) -> bool");
    m.def("screen_stages(bool on) -> bool");
    m.def("fuse_stages(bool on) -> bool");
    m.def("address(str name) -> int");
}

namespace {

template <class Library>
void implement(Library& m) {
    m.impl("top_m", TORCH_BOX(&ops::top_m));
    m.impl("keep_top_m", TORCH_BOX(&ops::keep_top_m));
    m.impl("unpool", TORCH_BOX(&ops::unpool));
    m.impl("apply_mask", TORCH_BOX(&ops::apply_mask));
    m.impl("batch_top_m", TORCH_BOX(&ops::batch_top_m));
    m.impl("encode_top_m", TORCH_BOX(&ops::encode_top_m));
    m.impl("encode_top_m_saving", TORCH_BOX(&ops::encode_top_m_saving));
    m.impl("encode_top_m_backward", TORCH_BOX(&ops::encode_top_m_backward));
    m.impl("encode_top_m_factored", TORCH_BOX(&ops::encode_top_m_factored));
    m.impl("encode_top_m_factored_saving", TORCH_BOX(&ops::encode_top_m_factored_saving));
    m.impl("encode_top_m_factored_backward", TORCH_BOX(&ops::encode_top_m_factored_backward));
    m.impl("encode_l0", TORCH_BOX(&ops::encode_l0));
    m.impl("encode_l0_saving", TORCH_BOX(&ops::encode_l0_saving));
    m.impl("encode_l0_backward", TORCH_BOX(&ops::encode_l0_backward));
    m.impl("threshold", TORCH_BOX(&ops::threshold));
    m.impl("threshold_backward", TORCH_BOX(&ops::threshold_backward));
    m.impl("decode", TORCH_BOX(&ops::decode));
    m.impl("decode_backward", TORCH_BOX(&ops::decode_backward));
    m.impl("omp", TORCH_BOX(&ops::omp));
    m.impl("least_squares", TORCH_BOX(&ops::least_squares));
    m.impl("gather_top_m", TORCH_BOX(&ops::gather_top_m));
    m.impl("screened_top_m", TORCH_BOX(&ops::screened_top_m));
    m.impl("transpose", TORCH_BOX(&ops::transpose_copy));
    m.impl("gather_rows", TORCH_BOX(&ops::gather_rows));
    m.impl("row_dots", TORCH_BOX(&ops::row_dots));
    m.impl("group", TORCH_BOX(&ops::group));
    m.impl("combine", TORCH_BOX(&ops::combine));
    m.impl("outer", TORCH_BOX(&ops::outer));
    m.impl("outer_atomic", TORCH_BOX(&ops::outer_atomic));
    m.impl("product_on_support", TORCH_BOX(&ops::product_on_support));
}

/// Of a boxed kernel (torch/native.h), 0 where there is none of that name.
int64_t address(deepl0::torch_ops::Name name) {
    using deepl0::torch_ops::Addresses;
    static const Addresses all([](Addresses& m) { implement(m); });
    return int64_t(reinterpret_cast<intptr_t>(all.of(name.text)));
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
    m.impl("tell_rules", TORCH_BOX(&ops::tell_rules));
    m.impl("force_rules", TORCH_BOX(&ops::force_rules));
    m.impl("read_rows_once", TORCH_BOX(&ops::read_rows_once));
    m.impl("screen_stages", TORCH_BOX(&ops::screen_stages));
    m.impl("fuse_stages", TORCH_BOX(&ops::fuse_stages));
    m.impl("address", TORCH_BOX(&address));
}
