// The Python module deepl0_kernels._C: what was built, and NumPy entry points that need no torch
// tensors. The operators of torch.ops.deepl0 are registered when this library loads
// (torch_ops.cpp).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "core/isa.h"
#include "core/screen.h"
#include "core/thresholds.h"
#include "core/top_m.h"

namespace py = pybind11;

namespace {

#define DEEPL0_STRING_(x) #x
#define DEEPL0_STRING(x) DEEPL0_STRING_(x)

py::dict build_info() {
    py::list compiled, supported;
    for (const auto isa : {deepl0::Isa::scalar, deepl0::Isa::avx2, deepl0::Isa::avx512}) {
        if (DEEPL0_X86 || isa == deepl0::Isa::scalar) compiled.append(deepl0::isa_name(isa));
        if (deepl0::isa_supported(isa)) supported.append(deepl0::isa_name(isa));
    }
    py::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["isa_compiled"] = compiled;
    info["isa_supported"] = supported;
    info["isa_active"] = deepl0::isa_name(deepl0::active_isa());
    info["amx_bfloat16"] = deepl0::screen_has(deepl0::ScreenKind::bfloat16_tiles);
    info["avx512_bfloat16"] = deepl0::screen_has(deepl0::ScreenKind::bfloat16_vectors);
    const std::string archs = DEEPL0_STRING(DEEPL0_CUDA_ARCHS);  // "sm_80 sm_90 compute_90", or ""
    info["cuda"] = !archs.empty();
    info["cuda_archs"] = py::str(archs).attr("split")();
    info["torch_abi_target"] = DEEPL0_STRING(DEEPL0_TORCH_TARGET);
    info["torch_built_with"] = DEEPL0_STRING(DEEPL0_TORCH_BUILT_WITH);
    return info;
}

struct Array {
    py::array data;  // C-contiguous
    deepl0::DType dtype;
    int64_t rows = 1, cols;
    std::vector<py::ssize_t> shape;

    Array(const char* name, const py::array& input) {
        if (py::isinstance<py::array_t<float>>(input)) {
            dtype = deepl0::DType::f32;
        } else if (py::isinstance<py::array_t<double>>(input)) {
            dtype = deepl0::DType::f64;
        } else {
            throw py::value_error(std::string(name) + " must be float32 or float64, got " +
                                  py::str(input.dtype()).cast<std::string>());
        }
        if (input.ndim() < 1) {
            throw py::value_error(std::string(name) + " must have at least 1 dimension(s), got 0");
        }
        data = py::array::ensure(input, py::array::c_style);
        shape.assign(data.shape(), data.shape() + data.ndim());
        cols = shape.back();
        for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    }

    std::vector<py::ssize_t> with_last(py::ssize_t last) const {
        auto s = shape;
        s.back() = last;
        return s;
    }
};

void check_m(int64_t m, int64_t p) {
    if (0 <= m && m <= p) return;
    throw py::value_error("m must be >= 0 and <= p = " + std::to_string(p) + ", got " +
                          std::to_string(m));
}

py::tuple top_m(const py::array& input, int64_t m) {
    const Array u("u", input);
    check_m(m, u.cols);
    py::array values(u.data.dtype(), u.with_last(m));
    py::array_t<int64_t> indices(u.with_last(m));
    std::vector<char> workspace(deepl0::top_m_workspace_bytes(u.dtype, u.cols, m));
    void* values_data = values.mutable_data();
    int64_t* indices_data = indices.mutable_data();
    {
        py::gil_scoped_release release;
        deepl0::top_m(u.dtype, u.data.data(), u.cols, u.cols, m, values_data, indices_data, 0,
                      u.rows, workspace.data());
    }
    return py::make_tuple(values, indices);
}

py::array keep_top_m(const py::array& input, int64_t m) {
    const Array u("u", input);
    check_m(m, u.cols);
    py::array out(u.data.dtype(), u.shape);
    std::vector<uint8_t> mask(static_cast<size_t>(u.rows * ((u.cols + 7) / 8)));
    std::vector<char> workspace(deepl0::top_m_workspace_bytes(u.dtype, u.cols, m));
    void* out_data = out.mutable_data();
    {
        py::gil_scoped_release release;
        deepl0::keep_top_m(u.dtype, u.data.data(), u.cols, u.cols, m, out_data, u.cols, mask.data(),
                           0, u.rows, workspace.data());
    }
    return out;
}

py::array threshold(const py::array& input, const py::object& theta_input, double sigma,
                    const std::string& kind_name) {
    using deepl0::ThresholdKind;
    const Array u("u", input);
    const ThresholdKind kind =
        kind_name == "hard"   ? ThresholdKind::hard
        : kind_name == "soft" ? ThresholdKind::soft
        : kind_name == "helu"
            ? ThresholdKind::helu
            : throw py::value_error("kind must be hard, soft or helu, got " + kind_name);
    if (!(sigma >= 0.0 && sigma <= 1.0)) {
        throw py::value_error("sigma must be in [0, 1], got " + std::to_string(sigma));
    }
    const py::array theta = py::module_::import("numpy").attr("array")(theta_input, u.data.dtype(),
                                                                       py::arg("order") = "C");
    const bool per_entry = theta.ndim() == 1;
    if (theta.ndim() > 1 || (per_entry && theta.shape(0) != u.cols)) {
        throw py::value_error("theta must have shape [] or [p] with p = " + std::to_string(u.cols));
    }
    if (deepl0::first_bad_theta(u.dtype, kind, theta.data(), theta.size()) >= 0) {
        throw py::value_error(kind == ThresholdKind::helu ? "theta must be > 0"
                                                          : "theta must be >= 0");
    }
    py::array out(u.data.dtype(), u.shape);
    void* out_data = out.mutable_data();
    {
        py::gil_scoped_release release;
        deepl0::threshold(u.dtype, kind, u.data.data(), u.cols, theta.data(), per_entry, sigma,
                          out_data, u.cols, u.cols, 0, u.rows);
    }
    return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    deepl0::active_isa();  // a wrong DEEPL0_ISA fails here, by name
    m.doc() = "Compiled kernels of deepl0_kernels.";
    m.def("build_info", &build_info,
          "Compiler, instruction sets, CUDA and torch ABI of this build, as a dict.");
    m.def(
        "active_isa", [] { return deepl0::isa_name(deepl0::active_isa()); },
        "Instruction set in force: the best the CPU has, capped by DEEPL0_ISA.");
    m.def("top_m", &top_m, py::arg("u"), py::arg("m"),
          "deepl0_kernels.top_m for a NumPy array: (values, indices).");
    m.def("keep_top_m", &keep_top_m, py::arg("u"), py::arg("m"),
          "deepl0_kernels.keep_top_m for a NumPy array.");
    m.def("threshold", &threshold, py::arg("u"), py::arg("theta"), py::arg("sigma") = 0.0,
          py::arg("kind") = "helu",
          "Hard, soft or HELU_sigma threshold of a NumPy array; theta is [] or [p].");
}
