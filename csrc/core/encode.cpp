#include "encode.h"

#include <cstring>

#include "gather.h"
#include "kernel_table.h"
#include "select.h"
#include "sizes.h"
#include "top_m.h"
#include "transpose.h"

namespace deepl0 {
namespace DEEPL0_ISA {

extern const TopMKernels top_m_table;

namespace {

/// One workspace block: the pre-activations of a row, then what the selection needs.
template <class T>
struct Scratch {
    T* u;
    void* selection;

    Scratch(void* block, int64_t p) : u(static_cast<T*>(block)), selection(u + round_up(p, 16)) {}
};

/// The code of stage k, row r.
template <class T>
struct Code {
    T* values;
    int64_t* indices;
    bool positive;
    DType type;
    Code(const TopMCodes<T>& out, int64_t k, int64_t r) {
        const bool last = k + 1 == out.stages;
        const int64_t at = r * out.m + (last ? 0 : k * out.saved_stride);
        values = (last ? out.values : out.saved_values) + at;
        indices = (last ? out.indices : out.saved_indices) + at;
        positive = out.positive;
        type = out.type;
    }
};

DEEPL0_INLINE void select_row(const float* u, int64_t p, int64_t m, Code<float> code,
                              void* workspace) {
    float* values = static_cast<float*>(workspace);
    int32_t* indices = reinterpret_cast<int32_t*>(values + m + kSelectSlack);
    const auto select = code.positive ? select_top_m<true> : select_top_m<false>;
    select(u, p, m, indices + m + kSelectSlack, indices, values);
    round_to(code.type, values, m);
    for (int64_t j = 0; j < m; ++j) code.values[j] = values[j];
    for (int64_t j = 0; j < m; ++j) code.indices[j] = indices[j];
}

DEEPL0_INLINE void select_row(const double* u, int64_t p, int64_t m, Code<double> code,
                              void* workspace) {
    top_m_table.top_m(DType::f64, u, p, p, m, code.positive, code.values, code.indices, 0, 1,
                      workspace);
}

template <class T>
void rows_impl(const T* wx, int64_t rows, int64_t p, StepMatrices<T> s, TopMCodes<T> out,
               void* workspace) {
    const Scratch<T> w(workspace, p);
    for (int64_t r = 0; r < rows; ++r, wx += p) {
        select_row(wx, p, out.m, Code<T>(out, 0, r), w.selection);
        for (int64_t k = 1; k < out.stages; ++k) {
            const Code<T> z(out, k - 1, r);
            const T* step = s.data + (k - 1) * s.step_stride;
            gather_sum(w.u, wx, step, p, z.values, z.indices, out.m, p);
            select_row(w.u, p, out.m, Code<T>(out, k, r), w.selection);
        }
    }
}

template <class T>
void columns_impl(const T* wx, int64_t rows, int64_t p, StepMatrices<T> s, TopMCodes<T> out,
                  void* workspace) {
    const Scratch<T> w(workspace, p);
    for (int64_t r = 0; r < rows; ++r, wx += p) {
        select_row(wx, p, out.m, Code<T>(out, 0, r), w.selection);
        for (int64_t k = 1; k < out.stages; ++k) {
            const Code<T> z(out, k - 1, r);
            const T* step = s.data + (k - 1) * s.step_stride;
            gather_columns(w.u, wx, step, p, z.values, z.indices, out.m, p);
            select_row(w.u, p, out.m, Code<T>(out, k, r), w.selection);
        }
    }
}

template <class T>
void select_impl(const T* u, int64_t rows, int64_t p, TopMCodes<T> out, int64_t k,
                 void* workspace) {
    const Scratch<T> w(workspace, p);
    for (int64_t r = 0; r < rows; ++r)
        select_row(u + r * p, p, out.m, Code<T>(out, k, r), w.selection);
}

/// out[j * n + i] = S'[j, c + i] for j < p, i < n.
template <class T>
DEEPL0_INLINE void pack_columns(const StepMatrices<T>& s, const T* step, int64_t p, int64_t c,
                                int64_t n, T* out) {
    if (!s.transposed) {
        transpose(step + c * p, p, n, p, out, n);
    } else {
        for (int64_t j = 0; j < p; ++j)
            memcpy(out + j * n, step + j * p + c, size_t(n) * sizeof(T));
    }
}

template <class T>
void transpose_impl(const T* s, int64_t rows, int64_t cols, int64_t begin, int64_t end, T* out) {
    transpose(s + begin * cols, cols, end - begin, cols, out + begin, rows);
}

/// Asks for n elements to be brought to a cache: level 3 is L1, 2 is L2.
template <int Level, class T>
DEEPL0_INLINE void prefetch(const T* data, int64_t n) {
    constexpr int64_t kLine = 64 / int64_t(sizeof(T));
    for (int64_t i = 0; i < n; i += kLine) __builtin_prefetch(data + i, 0, Level);
}

/// sum[:, c : c + n] = wx[:, c : c + n] + z times one panel of S'. Meanwhile fetches `fetch`
/// elements from `next`, a piece per row, and wx some rows ahead.
template <class T>
DEEPL0_INLINE void add_panel(T* sum, const T* wx, int64_t rows, int64_t p, int64_t c, int64_t n,
                             const T* panel, const T* next, int64_t fetch, const Code<T>& z,
                             int64_t m) {
    constexpr int64_t kAhead = 4;
    const int64_t piece = (fetch / rows + 16) / 16 * 16;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t fetched = r * piece;
        prefetch<2>(next + fetched, smaller(piece, fetch - fetched));
        if (r + kAhead < rows) prefetch<3>(wx + (r + kAhead) * p + c, n);
        gather_sum(sum + r * p + c, wx + r * p + c, panel, n, z.values + r * m, z.indices + r * m,
                   m, n);
    }
}

template <class T>
void panels_impl(T* wx, int64_t rows, int64_t p, StepMatrices<T> s, int64_t width, TopMCodes<T> out,
                 T* u, T* panel, void* workspace) {
    select_impl(static_cast<const T*>(wx), rows, p, out, 0, workspace);
    for (int64_t k = 1; k < out.stages; ++k) {
        const T* step = s.data + (k - 1) * s.step_stride;
        T* sum = k + 1 < out.stages ? u : wx;  // the last stage may overwrite W x
        for (int64_t c = 0; c < p; c += width) {
            const int64_t n = smaller(width, p - c), next = smaller(width, p - c - n) * p;
            const int64_t fetch = panel && s.transposed ? 0 : next;
            if (panel) pack_columns(s, step, p, c, n, panel);
            add_panel(sum, wx, rows, p, c, n, panel ? panel : step + c * p, step + (c + n) * p,
                      fetch, Code<T>(out, k - 1, 0), out.m);
        }
        select_impl(static_cast<const T*>(sum), rows, p, out, k, workspace);
    }
}

/// One row of w at a time is one stream for the prefetchers: twice as fast from L2 as several
/// abreast.
template <class T>
void product_impl(const T* x, int64_t ldx, int64_t rows, const T* w, int64_t ldw, int64_t units,
                  int64_t n, const T* base, int64_t ldb, T* out, int64_t ldo) {
    if (rows == 1) {
        for (int64_t i = 0; i < units; ++i, w += ldw)
            out[i] = base ? base[i] + dot(x, w, n) : dot(x, w, n);
        return;
    }
    for (int64_t i = 0; i < units; ++i, w += ldw) {
        for (int64_t r = 0; r < rows; ++r) {
            const T sum = dot(x + r * ldx, w, n);
            out[r * ldo + i] = base ? base[r * ldb + i] + sum : sum;
        }
    }
}

template <class T>
constexpr EncodeKernels<T> kEncode = {rows_impl<T>,   columns_impl<T>,   panels_impl<T>,
                                      select_impl<T>, transpose_impl<T>, product_impl<T>};

}  // namespace

extern const EncodeKernels<float> encode_f32;
extern const EncodeKernels<double> encode_f64;
const EncodeKernels<float> encode_f32 = kEncode<float>;
const EncodeKernels<double> encode_f64 = kEncode<double>;

}  // namespace DEEPL0_ISA

#if DEEPL0_ISA_LEVEL == 0
DEEPL0_TABLES(EncodeKernels, encode)

template <class T>
int64_t encode_workspace(int64_t p, int64_t m) {
    const int64_t row = round_up(p, 16) * int64_t(sizeof(T));
    if (sizeof(T) == 8) return row + int64_t(top_m_workspace_bytes(DType::f64, p, m));
    return row + (2 * (m + scalar::kSelectSlack) + scalar::cut_scratch(p)) * 4;
}
template int64_t encode_workspace<float>(int64_t, int64_t);
template int64_t encode_workspace<double>(int64_t, int64_t);
#endif

}  // namespace deepl0
