// _C.Plan for the module.
#pragma once

#include <Python.h>

namespace deepl0 {

/// A new reference to the type, null with a Python exception set.
PyObject* plan_type();

}  // namespace deepl0
