// The Python module deepl0_kernels._C: what was built, and the instruction set in force. The
// operators of torch.ops.deepl0 are registered when this library loads (torch_ops.cpp).
#include <Python.h>

#include <exception>
#include <string>

#include "call.h"
#include "core/isa.h"
#include "core/screen.h"
#include "plan.h"

namespace {

#define DEEPL0_STRING_(x) #x
#define DEEPL0_STRING(x) DEEPL0_STRING_(x)

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif
constexpr const char* kCudaArchs = DEEPL0_STRING(DEEPL0_CUDA_ARCHS);  // "sm_80 compute_80", or ""

/// The words of a text, as a list.
PyObject* split(const std::string& words) {
    PyObject* text = PyUnicode_FromString(words.c_str());
    PyObject* list = text ? PyUnicode_Split(text, nullptr, -1) : nullptr;
    Py_XDECREF(text);
    return list;
}

PyObject* build_info(PyObject*, PyObject*) {
    std::string compiled, supported;
    for (const auto isa : {deepl0::Isa::scalar, deepl0::Isa::avx2, deepl0::Isa::avx512}) {
        const std::string name = std::string(deepl0::isa_name(isa)) + " ";
        if (DEEPL0_X86 || isa == deepl0::Isa::scalar) compiled += name;
        if (deepl0::isa_supported(isa)) supported += name;
    }
    const auto flag = [](bool on) { return on ? Py_True : Py_False; };
    return Py_BuildValue(
        "{s:s,s:N,s:N,s:s,s:O,s:O,s:O,s:O,s:N,s:s,s:s}", "compiler", kCompiler, "isa_compiled",
        split(compiled), "isa_supported", split(supported), "isa_active",
        deepl0::isa_name(deepl0::active_isa()), "amx_bfloat16",
        flag(deepl0::screen_has(deepl0::ScreenKind::bfloat16_tiles)), "avx512_bfloat16",
        flag(deepl0::screen_has(deepl0::ScreenKind::bfloat16_vectors)), "avx512_int8",
        flag(deepl0::screen_has(deepl0::ScreenKind::int8_vectors)), "cuda", flag(*kCudaArchs),
        "cuda_archs", split(kCudaArchs), "torch_abi_target", DEEPL0_STRING(DEEPL0_TORCH_TARGET),
        "torch_built_with", DEEPL0_STRING(DEEPL0_TORCH_BUILT_WITH));
}

PyObject* active_isa(PyObject*, PyObject*) {
    return PyUnicode_FromString(deepl0::isa_name(deepl0::active_isa()));
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "Compiler, instruction sets, CUDA and torch ABI of this build, as a dict."},
    {"active_isa", active_isa, METH_NOARGS,
     "Instruction set in force: the best the CPU has, capped by DEEPL0_ISA."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C",
                          "Compiled kernels of deepl0_kernels.",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
    try {
        deepl0::active_isa();  // a wrong DEEPL0_ISA fails here, by name
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ImportError, error.what());
        return nullptr;
    }
    PyObject* module = PyModule_Create(&definition);
    PyObject* type = module ? deepl0::plan_type() : nullptr;
    if (!type || PyModule_AddObject(module, "Plan", type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(module);
        return nullptr;
    }
    if (!deepl0::add_calls(module)) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
