// _C.Plan, the object behind dk.prepare: kept weights, and a way into the kernels that is shorter
// than PyTorch's dispatcher. It serves what needs nothing of that (plain CPU tensors, no gradient,
// no mode) and whose weights are those that it was made of; of anything else it says so.
#include "plan.h"

#include <cstring>
#include <vector>

#include "call.h"
#include "python.h"
#include "torch/native.h"
#include "torch/plan.h"

namespace deepl0 {
namespace {

using torch_ops::PlanMatrix;

/// Names, and what of torch is called.
struct Torch {
    PyObject *data_ptr, *version, *stride, *shape, *dtype, *is_cpu, *is_neg, *contiguous,
        *requires_grad;
    PyObject *tensor, *parameter, *empty, *float16, *bfloat16, *float32, *int64, *options32,
        *options64;
};

const Torch& torch_names() {
    static const Torch found = [] {
        Torch t;
        t.data_ptr = interned("data_ptr");
        t.version = interned("_version");
        t.stride = interned("stride");
        t.shape = interned("shape");
        t.dtype = interned("dtype");
        t.is_cpu = interned("is_cpu");
        t.is_neg = interned("is_neg");
        t.contiguous = interned("is_contiguous");
        t.requires_grad = interned("requires_grad");
        const auto of = [](const Ref& module, const char* text) {
            return attribute(module, text).release();
        };
        const Ref torch = checked(PyImport_ImportModule("torch"));
        const Ref nn = checked(PyImport_ImportModule("torch.nn"));
        t.tensor = of(torch, "Tensor");
        t.parameter = of(nn, "Parameter");
        t.empty = of(torch, "empty");
        t.float16 = of(torch, "float16");
        t.bfloat16 = of(torch, "bfloat16");
        t.float32 = of(torch, "float32");
        t.int64 = of(torch, "int64");
        t.options32 = checked(Py_BuildValue("{s:O}", "dtype", t.float32)).release();
        t.options64 = checked(Py_BuildValue("{s:O}", "dtype", t.int64)).release();
        return t;
    }();
    return found;
}

const void* address(PyObject* tensor) {
    const Ref at = checked(PyObject_CallMethodObjArgs(tensor, torch_names().data_ptr, nullptr));
    void* p = PyLong_AsVoidPtr(at.get());
    if (!p && PyErr_Occurred()) throw PythonError();
    return p;
}

std::vector<int64_t> integers(const Ref& tuple) {
    std::vector<int64_t> v;
    for (Py_ssize_t i = 0; i < PyTuple_Size(tuple.get()); ++i)
        v.push_back(integer(Ref::to(PyTuple_GetItem(tuple.get(), i))));
    return v;
}

bool is_tensor(PyObject* o) {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(o));
    return type == torch_names().tensor || type == torch_names().parameter;
}

/// What a weight was when the plan was made.
struct Weight {
    Ref shape, strides;
    const void* data = nullptr;
    int64_t version = 0, element = 0, count = 1, rows = 0, cols = 0;
    int64_t stride = 0, row_stride = 0, col_stride = 0;
    uint64_t few = 0, many = 0;  // fingerprints

    bool given() const { return bool(shape); }

    /// A mix of entries on the diagonals of the matrices. Writes that PyTorch does not count
    /// (through .data, NumPy or DLPack) change it, where they change one of these. all: of every
    /// row and every column one, else 16 of a matrix.
    uint64_t fingerprint(bool all) const {
        const int64_t longest = rows > cols ? rows : cols;
        const int64_t step = all || longest < 16 ? 1 : longest / 16;
        const int64_t down = step % rows, right = step % cols;
        uint64_t h = 0;
        for (int64_t k = 0; k < count; ++k) {
            const char* const matrix = static_cast<const char*>(data) + element * (k * stride);
            for (int64_t i = 0, r = 0, c = 0; i < longest; i += step) {
                uint64_t bits = 0;
                memcpy(&bits, matrix + element * (r * row_stride + c * col_stride),
                       size_t(element));
                h = (h ^ bits) * 0x9e3779b97f4a7c15u;
                r += down;
                r -= r >= rows ? rows : 0;
                c += right;
                c -= c >= cols ? cols : 0;
            }
        }
        return h;
    }

    static Weight of(PyObject* t) {
        Weight w;
        if (t == Py_None) return w;
        const Torch& n = torch_names();
        w.shape = checked(PyObject_GetAttr(t, n.shape));
        w.strides = checked(PyObject_CallMethodObjArgs(t, n.stride, nullptr));
        w.data = address(t);
        w.version = integer(checked(PyObject_GetAttr(t, n.version)));
        w.element = integer(checked(PyObject_CallMethod(t, "element_size", nullptr)));
        auto sizes = integers(w.shape), strides = integers(w.strides);
        while (sizes.size() < 2) {
            sizes.insert(sizes.begin(), 1);
            strides.insert(strides.begin(), 0);
        }
        if (sizes.size() > 2) {
            w.count = sizes[0];
            w.stride = strides[0];
        }
        w.cols = sizes.back();
        w.rows = sizes[sizes.size() - 2];
        w.col_stride = strides.back();
        w.row_stride = strides[strides.size() - 2];
        if (w.rows > 0 && w.cols > 0) {
            w.few = w.fingerprint(false);
            w.many = w.fingerprint(true);
        }
        return w;
    }

    /// Whether the tensor still is what it was. many: that is worth looking at more of it.
    bool is(PyObject* t, bool many_rows) const {
        if (t == Py_None) return !given();
        const Torch& n = torch_names();
        if (!given() || !is_tensor(t) || address(t) != data) return false;
        if (integer(checked(PyObject_GetAttr(t, n.version))) != version) return false;
        const Ref now = checked(PyObject_CallMethodObjArgs(t, n.stride, nullptr));
        const Ref sizes = checked(PyObject_GetAttr(t, n.shape));
        if (PyObject_RichCompareBool(now.get(), strides.get(), Py_EQ) != 1) return false;
        if (PyObject_RichCompareBool(sizes.get(), shape.get(), Py_EQ) != 1) return false;
        return rows == 0 || cols == 0 ||
               (many_rows ? fingerprint(true) == many : fingerprint(false) == few);
    }
};

enum Operand { kW, kS, kD, kBias, kOperands };

/// What stands behind the Python object.
struct State {
    Weight weights[kOperands];
    Ref held[kOperands];    // tensors that keep the memory of the weights, so that it is not given
                            // out
    Ref served[kOperands];  // float32, what the kernels read
    int64_t n = 0, p = 0, per_step = 0;
    std::unique_ptr<torch_ops::Plan> plan;
};

struct Object {
    PyObject_HEAD State* state;
};

PlanMatrix matrix_of(PyObject* t) {
    if (t == Py_None) return {};
    const Torch& n = torch_names();
    const auto sizes = integers(checked(PyObject_GetAttr(t, n.shape)));
    const auto strides = integers(checked(PyObject_CallMethodObjArgs(t, n.stride, nullptr)));
    const size_t d = sizes.size();
    PlanMatrix m;
    m.data = static_cast<const float*>(address(t));
    m.per_step = d == 3;
    if (m.per_step) {
        m.count = sizes[0];
        m.stride = strides[0];
    }
    m.rows = sizes[d - 2];
    m.cols = sizes[d - 1];
    m.row_stride = strides[d - 2];
    m.col_stride = strides[d - 1];
    return m;
}

DType dtype_of(PyObject* t) {
    const Torch& n = torch_names();
    const Ref type = checked(PyObject_GetAttr(t, n.dtype));
    return type.get() == n.float16    ? DType::f16
           : type.get() == n.bfloat16 ? DType::bf16
                                      : DType::f32;
}

/// Plan(weights, held, served): tuples of W, S, D and bias, None where there is none.
PyObject* create(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *given, *held, *served;
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyTuple_Type, &given, &PyTuple_Type, &held,
                          &PyTuple_Type, &served))
        return nullptr;
    return guarded([&] {
        auto state = std::make_unique<State>();
        for (int i = 0; i < kOperands; ++i) {
            state->weights[i] = Weight::of(PyTuple_GetItem(given, i));
            state->held[i] = Ref::to(PyTuple_GetItem(held, i));
            state->served[i] = Ref::to(PyTuple_GetItem(served, i));
        }
        const PlanMatrix w = matrix_of(state->served[kW].get());
        const PlanMatrix s = matrix_of(state->served[kS].get());
        PyObject* bias = state->served[kBias].get();
        state->p = w.rows;
        state->n = w.cols;
        state->per_step = s.per_step ? s.count : 0;
        state->plan = std::make_unique<torch_ops::Plan>(
            w, s, matrix_of(state->served[kD].get()),
            bias == Py_None ? nullptr : static_cast<const float*>(address(bias)),
            dtype_of(state->held[kW].get()));
        Ref object = checked(PyType_GenericAlloc(type, 0));
        reinterpret_cast<Object*>(object.get())->state = state.release();
        return object.release();
    });
}

void destroy(PyObject* self) {
    delete reinterpret_cast<Object*>(self)->state;
    PyTypeObject* type = Py_TYPE(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

enum class Match { yes, no, stale };

/// A call on x [rows, n], and these weights, of which those beyond `stages` - 1 are not looked at.
struct Call {
    Match match = Match::no;
    const float* x = nullptr;
    int64_t rows = 0;

    Call(const State& s, PyObject* x_, PyObject* const* operands, int64_t stages,
         PyObject* const* others, int count) {
        const Torch& t = torch_names();
        if (!is_tensor(x_) || !no_mode() || watched()) return;
        if (checked(PyObject_GetAttr(x_, t.dtype)).get() != t.float32 || !flag(x_, t.is_cpu))
            return;
        const auto shape = integers(checked(PyObject_GetAttr(x_, t.shape)));
        if (shape.size() != 2 || shape[0] < 1 || shape[1] != s.n) return;
        if (!is_true(checked(PyObject_CallMethodObjArgs(x_, t.contiguous, nullptr))) ||
            is_true(checked(PyObject_CallMethodObjArgs(x_, t.is_neg, nullptr))))
            return;
        if (torch_ops::grad_mode()) {
            if (flag(x_, t.requires_grad)) return;
            for (int i = 0; i < kOperands; ++i)
                if (operands[i] != Py_None && flag(operands[i], t.requires_grad)) return;
            for (int i = 0; i < count; ++i)
                if (is_tensor(others[i]) && flag(others[i], t.requires_grad)) return;
        }
        match = Match::stale;
        for (int i = 0; i < kOperands; ++i) {
            if (stages == 1 && (i == kS || i == kD) && operands[i] == Py_None) continue;
            if (!s.weights[i].is(operands[i], shape[0] >= 32)) return;
        }
        match = Match::yes;
        x = static_cast<const float*>(address(x_));
        rows = shape[0];
    }

    /// What tells the caller to go the long way, None, or to make the plan anew, False.
    PyObject* refusal() const {
        PyObject* said = match == Match::stale ? Py_False : Py_None;
        Py_INCREF(said);
        return said;
    }
};

Ref empty(int64_t rows, int64_t cols, PyObject* options) {
    const Torch& t = torch_names();
    const Ref size = checked(Py_BuildValue("(LL)", (long long)rows, (long long)cols));
    return checked(PyObject_Call(t.empty, size.get(), options));
}

std::vector<float> factors(PyObject* step, int64_t stages) {
    std::vector<float> v(size_t(stages), 1.0f);
    if (step != Py_None) memcpy(v.data(), address(step), size_t(stages) * sizeof(float));
    return v;
}

/// The number of stages fits the weights.
bool fits(const State& s, PyObject* const* operands, int64_t stages) {
    if (stages < 1) return false;
    if (stages == 1) return true;
    if (operands[kD] != Py_None) return operands[kS] == Py_None;
    return operands[kS] != Py_None && (s.per_step == 0 || s.per_step == stages - 1);
}

PyObject* encode_top_m(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        if (count != 8) {
            PyErr_SetString(PyExc_TypeError,
                            "encode_top_m takes x, W, S, D, bias, step, m, positive");
            throw PythonError();
        }
        const State& s = *reinterpret_cast<Object*>(self)->state;
        PyObject *x = args[0], *const *operands = args + 1, *step = args[5];
        const int64_t stages = PyTuple_Size(args[6]);
        std::vector<int64_t> m;
        for (Py_ssize_t k = 0; k < stages; ++k)
            m.push_back(integer(Ref::to(PyTuple_GetItem(args[6], k))));
        const Call call(s, x, operands, stages, &step, 1);
        bool good = call.match == Match::yes && fits(s, operands, stages);
        for (const int64_t entries : m) good = good && 0 <= entries && entries <= s.p;
        if (!good) return call.match == Match::yes ? Ref::to(Py_None).release() : call.refusal();
        Ref values = empty(call.rows, m.back(), torch_names().options32);
        Ref indices = empty(call.rows, m.back(), torch_names().options64);
        auto* v = static_cast<float*>(const_cast<void*>(address(values.get())));
        auto* at = static_cast<int64_t*>(const_cast<void*>(address(indices.get())));
        const bool factored = operands[kD] != Py_None, positive = args[7] == Py_True;
        const std::vector<float> steps = factors(step, stages);
        unlocked(
            [&] { s.plan->encode_top_m(call.x, call.rows, m, steps, factored, positive, v, at); });
        return PyTuple_Pack(2, values.get(), indices.get());
    });
}

PyObject* encode_l0(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        if (count != 10) {
            PyErr_SetString(
                PyExc_TypeError,
                "encode_l0 takes x, W, S, D, bias, step, theta, num_stages, sigma, kind");
            throw PythonError();
        }
        const State& s = *reinterpret_cast<Object*>(self)->state;
        const Torch& t = torch_names();
        PyObject *x = args[0], *const *operands = args + 1, *const *others = args + 5;
        const int64_t stages = integer(Ref::to(args[7]));
        const Call call(s, x, operands, stages, others, 2);
        PyObject* theta = args[6];
        if (call.match != Match::yes || !fits(s, operands, stages)) return call.refusal();
        const auto sizes = integers(checked(PyObject_GetAttr(theta, t.shape)));
        const bool shaped = sizes.empty() || (sizes.size() == 1 && sizes[0] == s.p) ||
                            (sizes.size() == 2 && sizes[0] == stages && sizes[1] == s.p);
        if (!shaped || checked(PyObject_GetAttr(theta, t.dtype)).get() != t.float32 ||
            !flag(theta, t.is_cpu) ||
            !is_true(checked(PyObject_CallMethodObjArgs(theta, t.contiguous, nullptr))))
            return Ref::to(Py_None).release();
        const char* kind = PyUnicode_AsUTF8AndSize(args[9], nullptr);
        const double sigma = PyFloat_AsDouble(args[8]);
        if (!kind || (sigma == -1.0 && PyErr_Occurred())) throw PythonError();
        const torch_ops::PlanThresholds h{static_cast<const float*>(address(theta)),
                                          int64_t(sizes.size()), sigma, kind};
        Ref z = empty(call.rows, s.p, t.options32);
        auto* out = static_cast<float*>(const_cast<void*>(address(z.get())));
        const bool factored = operands[kD] != Py_None;
        const std::vector<float> steps = factors(args[5], stages);
        unlocked([&] { s.plan->encode_l0(call.x, call.rows, h, stages, steps, factored, out); });
        return z.release();
    });
}

PyObject* holds(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        const State& s = *reinterpret_cast<Object*>(self)->state;
        for (int i = 0; i < kOperands && i < count; ++i)
            if (!s.weights[i].is(args[i], true)) Py_RETURN_FALSE;
        Py_RETURN_TRUE;
    });
}

PyObject* nbytes(PyObject* self, void*) {
    return PyLong_FromLongLong(reinterpret_cast<Object*>(self)->state->plan->bytes());
}

PyMethodDef methods[] = {
    {"encode_top_m", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(encode_top_m)),
     METH_FASTCALL,
     "x, W, S, D, bias, step, m of every stage, positive -> (values, indices); None: not a call "
     "for "
     "a plan; False: not these weights."},
    {"encode_l0", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(encode_l0)),
     METH_FASTCALL,
     "x, W, S, D, bias, step, theta, num_stages, sigma, kind -> z; None, False: as above."},
    {"holds", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(holds)), METH_FASTCALL,
     "W, S, D, bias -> whether they are what the plan was made of."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef getters[] = {{"nbytes", nbytes, nullptr, "Bytes kept so far.", nullptr},
                         {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(create)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, getters},
                       {0, nullptr}};

PyType_Spec spec = {"deepl0_kernels._C.Plan", sizeof(Object), 0, Py_TPFLAGS_DEFAULT, slots};

}  // namespace

PyObject* plan_type() {
    return guarded([] {
        torch_names();  // once and for all, before there are threads that wait for one another
        return PyType_FromSpec(&spec);
    });
}

}  // namespace deepl0
