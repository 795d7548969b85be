// _C.Native, _C.AtOnce, _C.Formula, and the functions beside them, for the module.
#pragma once

#include <Python.h>

namespace deepl0 {

/// Whether nothing but a kernel and autograd has to see a call now: no tracing, dispatch mode,
/// transform of torch.func, autocast or forward mode. Throws where Python has an exception.
bool no_mode();

/// Whether somebody looks at operators as they are called: a profiler, or a mode of functions.
bool watched();

/// False with a Python exception set.
bool add_calls(PyObject* module);

}  // namespace deepl0
