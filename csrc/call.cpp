// What stands between a public function and its kernel. _C.Native is a kernel that Python calls
// without the dispatcher: it reads no schema and makes no boxes of torch's. _C.AtOnce is an
// operator's entrance: it tells whether a call is an ordinary one, and sends it on. _C.Formula is
// what its torch.autograd.Function does.
#include "call.h"

#include <memory>
#include <string>
#include <vector>

#include "python.h"
#include "torch/native.h"

namespace deepl0 {
namespace {

using torch_ops::Boxed;
using torch_ops::Stack;

/// Names, and what of torch is called.
struct Torch {
    PyObject *is_cpu, *is_cuda, *is_neg, *get_device, *ndim, *dtype, *requires_grad, *current_level,
        *compiling, *profiling, *materialize, *needs_input_grad;
    PyObject *float32, *default_dtype, *tensor, *parameter, *handle_of, *tensor_of, *autocast,
        *functions;
    std::vector<PyObject*> modes;  // each false where nothing but a kernel is to see a call
    PyObject *forward_ad, *compiler, *profiler;
    bool direct = false;  // torch hands out tensors as handles, and takes them, as it did so far
};

/// Whether a handle is the caller's to delete after a tensor was made of it: in torch 2.10 to 2.14
/// it is, whatever the name of the function says.
bool hands_out(const Torch& t, const Ref& torch) {
    const Ref one = checked(PyObject_CallMethod(torch.get(), "empty", "i", 0));
    const auto count = [&] {
        return integer(checked(PyObject_CallMethod(one.get(), "_use_count", nullptr)));
    };
    const int64_t before = count();
    const Ref capsule = checked(PyObject_CallFunctionObjArgs(t.handle_of, one.get(), nullptr));
    void* handle = PyCapsule_GetPointer(capsule.get(), nullptr);
    if (!handle) throw PythonError();
    const Ref again = checked(PyObject_CallFunctionObjArgs(t.tensor_of, capsule.get(), nullptr));
    if (again.get() != one.get() || count() != before + 1) return false;
    Stack stack;
    stack.tensor(handle);  // gives it back
    return true;
}

const Torch& torch_names() {
    static const Torch found = [] {
        Torch t;
        t.is_cpu = interned("is_cpu");
        t.is_cuda = interned("is_cuda");
        t.is_neg = interned("is_neg");
        t.get_device = interned("get_device");
        t.ndim = interned("ndim");
        t.dtype = interned("dtype");
        t.requires_grad = interned("requires_grad");
        t.current_level = interned("_current_level");
        t.compiling = interned("_is_compiling_flag");
        t.profiling = interned("_is_profiler_enabled");
        t.materialize = interned("materialize_grads");
        t.needs_input_grad = interned("needs_input_grad");
        const auto module = [](const char* name) { return checked(PyImport_ImportModule(name)); };
        const Ref torch = module("torch"), c = module("torch._C");
        t.tensor = attribute(torch, "Tensor").release();
        t.float32 = attribute(torch, "float32").release();
        t.default_dtype = attribute(torch, "get_default_dtype").release();
        t.parameter = attribute(module("torch.nn"), "Parameter").release();
        for (const char* mode : {"_are_functorch_transforms_active", "_len_torch_dispatch_stack",
                                 "_is_tracing", "_is_any_autocast_enabled"})
            t.modes.push_back(attribute(c, mode).release());
        t.autocast = attribute(c, "_is_any_autocast_enabled").release();
        t.functions = attribute(c, "_len_torch_function_stack").release();
        t.forward_ad = module("torch.autograd.forward_ad").release();
        t.compiler = module("torch.compiler").release();
        t.profiler = module("torch.autograd.profiler").release();
        try {
            const Ref aoti = attribute(c, "_aoti");
            t.handle_of = attribute(aoti, "unsafe_alloc_void_ptr_from_tensor").release();
            t.tensor_of = attribute(aoti, "alloc_tensor_by_stealing_from_void_ptr").release();
            t.direct = hands_out(t, torch);
        } catch (const PythonError&) {
            PyErr_Clear();
        }
        return t;
    }();
    return found;
}

bool is_tensor(const Torch& t, PyObject* o) {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(o));
    return type == t.tensor || type == t.parameter;
}

/// An argument's kind in a schema, and whether it is given as just that.
bool is_of(const Torch& t, char kind, PyObject* o) {
    switch (kind) {
        case 't':
            return is_tensor(t, o);
        case 'T':
            return o == Py_None || is_tensor(t, o);
        case 'n':
            return o == Py_None;
        case 'i':
            return Py_TYPE(o) == &PyLong_Type;
        case 'd':
            return Py_TYPE(o) == &PyFloat_Type;
        case 'b':
            return Py_TYPE(o) == &PyBool_Type;
        case 's':
            return Py_TYPE(o) == &PyUnicode_Type;
        case 'l':
            return Py_TYPE(o) == &PyList_Type;
    }
    return false;
}

PyTypeObject* native_object_type = nullptr;

/// What stands behind a Python object of ours.
template <class State>
struct Object {
    PyObject_HEAD State* state;
};

template <class State>
const State& state_of(PyObject* self) {
    return *reinterpret_cast<Object<State>*>(self)->state;
}

template <class State>
void destroy(PyObject* self) {
    delete reinterpret_cast<Object<State>*>(self)->state;
    PyTypeObject* type = Py_TYPE(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

template <class State>
PyObject* made(PyTypeObject* type, std::unique_ptr<State> state) {
    Ref object = checked(PyType_GenericAlloc(type, 0));
    reinterpret_cast<Object<State>*>(object.get())->state = state.release();
    return object.release();
}

struct Native {
    Boxed kernel;
    std::string kinds;
    int results;
    Ref otherwise;
};

bool push(const Torch& t, Stack& stack, char kind, PyObject* o) {
    switch (kind) {
        case 'T':
            if (o == Py_None) return stack.optional_tensor(nullptr);
            [[fallthrough]];
        case 't': {
            if (is_true(checked(PyObject_CallMethodObjArgs(o, t.is_neg, nullptr)))) return false;
            const Ref capsule = checked(PyObject_CallFunctionObjArgs(t.handle_of, o, nullptr));
            void* handle = PyCapsule_GetPointer(capsule.get(), nullptr);
            if (!handle) throw PythonError();
            return kind == 't' ? stack.tensor(handle) : stack.optional_tensor(handle);
        }
        case 'i':
            stack.integer(deepl0::integer(o));
            return true;
        case 'd':
            stack.number(PyFloat_AsDouble(o));
            return true;
        case 'b':
            stack.flag(o == Py_True);
            return true;
        case 's': {
            Py_ssize_t length = 0;
            const char* text = PyUnicode_AsUTF8AndSize(o, &length);
            if (!text) throw PythonError();
            stack.text(text, size_t(length));
            return true;
        }
        default: {
            std::vector<int64_t> values;
            for (Py_ssize_t i = 0; i < PyList_Size(o); ++i) {
                PyObject* entry = PyList_GetItem(o, i);
                if (Py_TYPE(entry) != &PyLong_Type) return false;
                values.push_back(deepl0::integer(entry));
            }
            stack.integers(values);
            return true;
        }
    }
}

Ref tensor_of(const Torch& t, void* handle) {
    const Ref capsule = checked(PyCapsule_New(handle, nullptr, nullptr));
    return checked(PyObject_CallFunctionObjArgs(t.tensor_of, capsule.get(), nullptr));
}

/// args: a tuple.
Ref call_native(const Native& n, PyObject* args) {
    const Torch& t = torch_names();
    const auto count = Py_ssize_t(n.kinds.size());
    bool direct = t.direct && PyTuple_Size(args) == count;
    for (Py_ssize_t i = 0; direct && i < count; ++i)
        direct = is_of(t, n.kinds[size_t(i)], PyTuple_GetItem(args, i));
    direct = direct && !watched();
    Stack stack;
    for (Py_ssize_t i = 0; direct && i < count; ++i)
        direct = push(t, stack, n.kinds[size_t(i)], PyTuple_GetItem(args, i));
    if (!direct) return checked(PyObject_Call(n.otherwise.get(), args, nullptr));
    unlocked([&] { stack.call(n.kernel, n.results); });
    if (n.results == 0) return Ref::to(Py_None);
    if (n.results == 1) return tensor_of(t, stack.result(0));
    Ref out = checked(PyTuple_New(n.results));
    for (int i = 0; i < n.results; ++i)
        if (PyTuple_SetItem(out.get(), i, tensor_of(t, stack.result(i)).release()) < 0)
            throw PythonError();
    return out;
}

PyObject* call_of_native(PyObject* self, PyObject* args, PyObject* named) {
    return guarded([&]() -> PyObject* {
        const Native& n = state_of<Native>(self);
        if (named && PyDict_Size(named) > 0) return PyObject_Call(n.otherwise.get(), args, named);
        return call_native(n, args).release();
    });
}

/// Native(address, kinds, results, otherwise); address 0: of the CPU kernel of that name.
PyObject* create_native(PyTypeObject* type, PyObject* args, PyObject*) {
    long long address = 0;
    const char *name = nullptr, *kinds = nullptr;
    int results = 0;
    PyObject* otherwise = nullptr;
    if (!PyArg_ParseTuple(args, "sLsiO", &name, &address, &kinds, &results, &otherwise))
        return nullptr;
    return guarded([&] {
        const auto kernel =
            address ? reinterpret_cast<Boxed>(intptr_t(address)) : torch_ops::cpu_kernel(name);
        if (!kernel) {
            PyErr_Format(PyExc_ValueError, "there is no kernel of the name %s", name);
            throw PythonError();
        }
        return made(
            type, std::unique_ptr<Native>(new Native{kernel, kinds, results, Ref::to(otherwise)}));
    });
}

struct AtOnce {
    Ref name;
    std::string kinds;
    int dims;
    bool open;
    Ref otherwise, kernels, kernel_of, formulas, last;
};

/// Of the fields of backends.Kernel.
enum Field { kRun, kSaving, kChecks, kWide, kDtypes, kCall };

PyObject* field(PyObject* kernel, Field at) {
    PyObject* found = PyTuple_GetItem(kernel, at);
    if (!found) throw PythonError();
    return found;
}

/// Gradients are not recorded while it lives.
class NoGrad {
  public:
    NoGrad() { torch_ops::set_grad_mode(false); }
    ~NoGrad() { torch_ops::set_grad_mode(true); }
    NoGrad(const NoGrad&) = delete;
};

/// The kernel for these arguments, or null.
Ref kernel_for(const Torch& t, const AtOnce& a, PyObject* args) {
    const auto count = Py_ssize_t(a.kinds.size());
    if (PyTuple_Size(args) != count) return {};
    for (Py_ssize_t i = 0; i < count; ++i)
        if (!is_of(t, a.kinds[size_t(i)], PyTuple_GetItem(args, i))) return {};
    if (!no_mode()) return {};
    PyObject* first = PyTuple_GetItem(args, 0);
    if (a.dims > 0 && integer(attribute(first, t.ndim)) != a.dims) return {};
    Ref key = Ref::to(a.name.get());
    if (!flag(first, t.is_cpu)) {
        if (!flag(first, t.is_cuda)) return {};
        const Ref device = checked(PyObject_CallMethodObjArgs(first, t.get_device, nullptr));
        key = checked(PyTuple_Pack(2, a.name.get(), device.get()));
    }
    Ref found = Ref::to(PyDict_GetItemWithError(a.kernels.get(), key.get()));
    if (!found) {
        if (PyErr_Occurred()) throw PythonError();
        found =
            checked(PyObject_CallFunctionObjArgs(a.kernel_of.get(), a.name.get(), first, nullptr));
    }
    PyObject* kernel = found.get();
    if (kernel == Py_None) return {};
    if (a.open && field(kernel, kChecks) != Py_True) return {};
    if (field(kernel, kWide) != Py_True) {
        const int has =
            PySequence_Contains(field(kernel, kDtypes), attribute(first, t.dtype).get());
        if (has < 0) throw PythonError();
        if (!has) return {};
    }
    return found;
}

bool records(const Torch& t, const AtOnce& a, PyObject* args) {
    if (!torch_ops::grad_mode()) return false;
    for (size_t i = 0; i < a.kinds.size(); ++i) {
        PyObject* o = PyTuple_GetItem(args, Py_ssize_t(i));
        if ((a.kinds[i] == 't' || a.kinds[i] == 'T') && o != Py_None && flag(o, t.requires_grad))
            return true;
    }
    return false;
}

Ref run(PyObject* function, PyObject* args) {
    if (Py_TYPE(function) == native_object_type)
        return call_native(state_of<Native>(function), args);
    return checked(PyObject_Call(function, args, nullptr));
}

Ref served(const Torch& t, const AtOnce& a, PyObject* args, PyObject* kernel) {
    if (!records(t, a, args)) return run(field(kernel, kRun), args);
    PyObject* formula = PyDict_GetItemWithError(a.formulas.get(), a.name.get());
    if (!formula) {
        if (PyErr_Occurred()) throw PythonError();
        const NoGrad guard;
        return run(field(kernel, kRun), args);
    }
    const Py_ssize_t count = PyTuple_Size(args);
    const Ref all = checked(PyTuple_New(count + 1));
    for (Py_ssize_t i = 0; i < count; ++i)
        if (PyTuple_SetItem(all.get(), i, Ref::to(PyTuple_GetItem(args, i)).release()) < 0)
            throw PythonError();
    if (PyTuple_SetItem(all.get(), count, Ref::to(field(kernel, kSaving)).release()) < 0)
        throw PythonError();
    return checked(PyObject_Call(formula, all.get(), nullptr));
}

/// The exception that is set, if it is one by which a kernel refuses; it is taken then.
Ref refusal() {
    for (PyObject* kind : {PyExc_RuntimeError, PyExc_TypeError, PyExc_OverflowError})
        if (PyErr_ExceptionMatches(kind)) {
            PyObject *type, *value, *trace;
            PyErr_Fetch(&type, &value, &trace);
            PyErr_NormalizeException(&type, &value, &trace);
            if (trace) PyException_SetTraceback(value, trace);
            Py_XDECREF(type);
            Py_XDECREF(trace);
            return Ref(value);
        }
    return {};
}

PyObject* call_at_once(PyObject* self, PyObject* args, PyObject* named) {
    const AtOnce& a = state_of<AtOnce>(self);
    if (named && PyDict_Size(named) > 0) {
        PyErr_SetString(PyExc_TypeError, "operators are called by position");
        return nullptr;
    }
    bool refused = false;
    PyObject* result = guarded([&]() -> PyObject* {
        const Torch& t = torch_names();
        const Ref kernel = kernel_for(t, a, args);
        if (!kernel) return PyObject_CallFunctionObjArgs(a.otherwise.get(), args, Py_None, nullptr);
        if (a.open &&
            PyList_SetItem(a.last.get(), 0, Ref::to(field(kernel.get(), kCall)).release()) < 0)
            throw PythonError();
        refused = true;  // unless it returns
        return served(t, a, args, kernel.get()).release();
    });
    if (result || !refused) return result;
    return guarded([&]() -> PyObject* {
        const Ref error = refusal();
        if (!error) return nullptr;
        return PyObject_CallFunctionObjArgs(a.otherwise.get(), args, error.get(), nullptr);
    });
}

/// AtOnce(name, kinds, dims, public, otherwise, kernels, kernel_of, formulas, last).
PyObject* create_at_once(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *name, *otherwise, *kernels, *kernel_of, *formulas, *last;
    const char* kinds;
    int dims, open;
    if (!PyArg_ParseTuple(args, "OsipOO!OO!O!", &name, &kinds, &dims, &open, &otherwise,
                          &PyDict_Type, &kernels, &kernel_of, &PyDict_Type, &formulas, &PyList_Type,
                          &last))
        return nullptr;
    return guarded([&] {
        return made(type,
                    std::unique_ptr<AtOnce>(new AtOnce{
                        Ref::to(name), kinds, dims, open != 0, Ref::to(otherwise), Ref::to(kernels),
                        Ref::to(kernel_of), Ref::to(formulas), Ref::to(last)}));
    });
}

/// What a torch.autograd.Function around an operator does beside its kernels.
struct Formula {
    int inputs, results;
    bool saves;  // the kernel returns more than the results: what its backward reads
    Ref setup, backward, isolated;
};

Ref slice(PyObject* tuple, Py_ssize_t begin, Py_ssize_t end) {
    return checked(PyTuple_GetSlice(tuple, begin, end));
}

/// ctx, the inputs of the operator, and what computes it -> its results.
PyObject* forward(PyObject* self, PyObject* args) {
    return guarded([&]() -> PyObject* {
        const Torch& t = torch_names();
        const Formula& f = state_of<Formula>(self);
        if (PyTuple_Size(args) != f.inputs + 2) {
            PyErr_SetString(PyExc_TypeError, "a formula is applied to inputs and a kernel");
            throw PythonError();
        }
        PyObject* ctx = PyTuple_GetItem(args, 0);
        const Ref inputs = slice(args, 1, f.inputs + 1);
        Ref output = run(PyTuple_GetItem(args, f.inputs + 1), inputs.get());
        // Of what has no gradient zeros would be made for nobody.
        if (PyObject_SetAttr(ctx, t.materialize, Py_False) < 0) throw PythonError();
        checked(
            PyObject_CallFunctionObjArgs(f.setup.get(), ctx, inputs.get(), output.get(), nullptr));
        if (!f.saves) return output.release();
        if (f.results > 1) return slice(output.get(), 0, f.results).release();
        return Ref::to(PyTuple_GetItem(output.get(), 0)).release();
    });
}

/// ctx and the gradients of the results, None where there is none -> those of the inputs.
PyObject* backward(PyObject* self, PyObject* args) {
    return guarded([&]() -> PyObject* {
        const Torch& t = torch_names();
        const Formula& f = state_of<Formula>(self);
        const Ref out = checked(PyTuple_New(f.inputs + 1));  // of the kernel there is none
        bool any = false;
        for (Py_ssize_t i = 1; i < PyTuple_Size(args); ++i)
            any = any || PyTuple_GetItem(args, i) != Py_None;
        Ref found;
        if (any) {
            const bool plain = !is_true(checked(PyObject_CallNoArgs(t.autocast))) &&
                               checked(PyObject_CallNoArgs(t.default_dtype)).get() == t.float32;
            found = checked(PyObject_Call((plain ? f.backward : f.isolated).get(), args, nullptr));
        }
        for (Py_ssize_t i = 0; i < f.inputs + 1; ++i) {
            PyObject* one = any && i < f.inputs ? PyTuple_GetItem(found.get(), i) : Py_None;
            if (!one || PyTuple_SetItem(out.get(), i, Ref::to(one).release()) < 0)
                throw PythonError();
        }
        return Ref::to(out.get()).release();
    });
}

/// Formula(inputs, results, saves, setup, backward, isolated): ``isolated`` is ``backward`` where
/// an ambient mode must not reach it.
PyObject* create_formula(PyTypeObject* type, PyObject* args, PyObject*) {
    int inputs, results, saves;
    PyObject *setup, *backward, *isolated;
    if (!PyArg_ParseTuple(args, "iipOOO", &inputs, &results, &saves, &setup, &backward, &isolated))
        return nullptr;
    return guarded([&] {
        return made(
            type, std::unique_ptr<Formula>(new Formula{inputs, results, saves != 0, Ref::to(setup),
                                                       Ref::to(backward), Ref::to(isolated)}));
    });
}

/// mask(ctx, *positions): the set of gradients that are wanted: bit i for the input at the i-th of
/// the positions.
PyObject* mask(PyObject*, PyObject* args) {
    return guarded([&]() -> PyObject* {
        const Ref needed = attribute(PyTuple_GetItem(args, 0), torch_names().needs_input_grad);
        long bits = 0;
        for (Py_ssize_t i = 1; i < PyTuple_Size(args); ++i) {
            PyObject* one =
                PyTuple_GetItem(needed.get(), Py_ssize_t(integer(PyTuple_GetItem(args, i))));
            if (!one) throw PythonError();
            bits |= long(one == Py_True) << (i - 1);
        }
        return PyLong_FromLong(bits);
    });
}

/// wanted(bits, *grads): the gradients that were asked for; the others, which are empty, as None.
PyObject* wanted(PyObject*, PyObject* args) {
    return guarded([&]() -> PyObject* {
        const int64_t bits = integer(PyTuple_GetItem(args, 0));
        const Py_ssize_t count = PyTuple_Size(args) - 1;
        const Ref out = checked(PyTuple_New(count));
        for (Py_ssize_t i = 0; i < count; ++i) {
            PyObject* one = bits >> i & 1 ? PyTuple_GetItem(args, i + 1) : Py_None;
            if (PyTuple_SetItem(out.get(), i, Ref::to(one).release()) < 0) throw PythonError();
        }
        return Ref::to(out.get()).release();
    });
}

PyMethodDef formula_methods[] = {
    {"forward", forward, METH_VARARGS, "ctx, inputs, kernel -> results"},
    {"backward", backward, METH_VARARGS, "ctx, gradients of results -> of inputs and kernel"},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot formula_slots[] = {{Py_tp_new, reinterpret_cast<void*>(create_formula)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(destroy<Formula>)},
                               {Py_tp_methods, formula_methods},
                               {0, nullptr}};
PyType_Spec formula_spec = {"deepl0_kernels._C.Formula", sizeof(Object<Formula>), 0,
                            Py_TPFLAGS_DEFAULT, formula_slots};

PyMethodDef functions[] = {
    {"mask", mask, METH_VARARGS, "The set of gradients that a backward is asked for."},
    {"wanted", wanted, METH_VARARGS, "Gradients, None where they were not asked for."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot native_slots[] = {{Py_tp_new, reinterpret_cast<void*>(create_native)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(destroy<Native>)},
                              {Py_tp_call, reinterpret_cast<void*>(call_of_native)},
                              {0, nullptr}};
PyType_Spec native_spec = {"deepl0_kernels._C.Native", sizeof(Object<Native>), 0,
                           Py_TPFLAGS_DEFAULT, native_slots};

PyType_Slot at_once_slots[] = {{Py_tp_new, reinterpret_cast<void*>(create_at_once)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(destroy<AtOnce>)},
                               {Py_tp_call, reinterpret_cast<void*>(call_at_once)},
                               {0, nullptr}};
PyType_Spec at_once_spec = {"deepl0_kernels._C.AtOnce", sizeof(Object<AtOnce>), 0,
                            Py_TPFLAGS_DEFAULT, at_once_slots};

}  // namespace

bool no_mode() {
    const Torch& t = torch_names();
    for (PyObject* mode : t.modes)
        if (is_true(checked(PyObject_CallNoArgs(mode)))) return false;
    return integer(attribute(t.forward_ad, t.current_level)) < 0 && !flag(t.compiler, t.compiling);
}

bool watched() {
    const Torch& t = torch_names();
    return flag(t.profiler, t.profiling) || is_true(checked(PyObject_CallNoArgs(t.functions)));
}

bool add_calls(PyObject* module) {
    const auto add = [&](PyType_Spec& spec, const char* name) {
        Ref type = checked(PyType_FromSpec(&spec));
        PyObject* o = type.get();
        if (PyModule_AddObject(module, name, o) < 0) throw PythonError();
        type.release();  // the module's
        return reinterpret_cast<PyTypeObject*>(o);
    };
    const Ref done(guarded([&] {
        torch_names();  // once and for all, before there are threads that wait for one another
        native_object_type = add(native_spec, "Native");
        add(at_once_spec, "AtOnce");
        add(formula_spec, "Formula");
        if (PyModule_AddFunctions(module, functions) < 0) throw PythonError();
        return Ref::to(Py_None).release();
    }));
    return bool(done);
}

}  // namespace deepl0
