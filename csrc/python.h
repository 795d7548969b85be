// What the Python objects of the module share: references, and C++ exceptions across the border.
#pragma once

#include <Python.h>

#include <cstdint>
#include <exception>
#include <new>
#include <utility>

namespace deepl0 {

/// A new reference, given back at the end.
class Ref {
  public:
    Ref() = default;
    explicit Ref(PyObject* o) : o_(o) {}
    Ref(Ref&& other) noexcept : o_(other.o_) { other.o_ = nullptr; }
    Ref& operator=(Ref&& other) noexcept {
        std::swap(o_, other.o_);
        return *this;
    }
    ~Ref() { Py_XDECREF(o_); }
    static Ref to(PyObject* o) {
        Py_XINCREF(o);
        return Ref(o);
    }
    PyObject* get() const { return o_; }
    explicit operator bool() const { return o_ != nullptr; }
    PyObject* release() {
        PyObject* o = o_;
        o_ = nullptr;
        return o;
    }

  private:
    PyObject* o_ = nullptr;
};

/// Thrown where Python has an exception.
struct PythonError {};

inline Ref checked(PyObject* o) {
    if (!o) throw PythonError();
    return Ref(o);
}

/// A name that is looked up often, for the life of the process.
inline PyObject* interned(const char* text) {
    return checked(PyUnicode_InternFromString(text)).release();
}

inline Ref attribute(PyObject* o, PyObject* name) { return checked(PyObject_GetAttr(o, name)); }
inline Ref attribute(const Ref& o, const char* name) {
    return checked(PyObject_GetAttrString(o.get(), name));
}

inline bool is_true(const Ref& o) {
    const int t = PyObject_IsTrue(o.get());
    if (t < 0) throw PythonError();
    return t;
}

inline bool flag(PyObject* o, PyObject* name) { return is_true(attribute(o, name)); }

inline int64_t integer(PyObject* o) {
    const long long v = PyLong_AsLongLong(o);
    if (v == -1 && PyErr_Occurred()) throw PythonError();
    return v;
}
inline int64_t integer(const Ref& o) { return integer(o.get()); }

/// Turns what is thrown into a Python exception.
template <class F>
PyObject* guarded(const F& f) {
    try {
        return f();
    } catch (const PythonError&) {
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

/// f() without Python's lock; its exceptions come through.
template <class F>
void unlocked(const F& f) {
    std::exception_ptr thrown;
    Py_BEGIN_ALLOW_THREADS;
    try {
        f();
    } catch (...) {
        thrown = std::current_exception();
    }
    Py_END_ALLOW_THREADS;
    if (thrown) std::rethrow_exception(thrown);
}

}  // namespace deepl0
