// Iterative hard thresholding with a fixed step: panels of rows, each row until it stands still.
#include "core/iht.h"

#include <cmath>
#include <mutex>
#include <optional>
#include <tuple>

#include "core/unit_lists.h"
#include "torch/course.h"
#include "torch/dictionary.h"

namespace deepl0::torch_ops {
namespace {

/// How q = mu D'(x - D a) is formed, chosen by make_plan.
struct Plan {
    bool gram;      // from -mu D'D; else through the residual
    bool by_rows;   // it is in L2 or not far beyond: each sparse row through all its iterations
    int64_t most;   // entries of a sparse row; beyond, a dense product
    int64_t width;  // of the column panels of an array beyond L2
    int64_t rows;   // of a panel of x
};

/// From what encode.cpp measured (one core, 2 MiB of L2, float32), in ns: the gather-sum costs 0.03
/// per entry and column, a dense product 0.02 per multiply-add, so that they meet where
/// encode_top_m has them; the crossover to the residual is computed from these, not timed. With D'D
/// an iteration is p columns of the one or p^2 of the other, after n p^2 once; through the residual
/// n columns and an n x p product. The iterations to come are not known: few rows stand still
/// before some tens. An array D'D of more than 256 MiB is never formed. Rows by themselves take
/// 0.85 to 1 of the time of panels where D'D is 2 to 8 times an L2 of 512 KiB, in an L3 of 32 MiB
/// (Zen 3).
template <class T>
Plan make_plan(int64_t batch, int64_t n, int64_t p, int64_t m, int64_t max_iter) {
    constexpr int64_t kExpected = 32, kMostBytes = int64_t(256) << 20;
    const int64_t size = sizeof(T), l2 = l2_bytes();
    const bool in_l2 = p * p * size * 3 <= l2 * 2, near = p * p * size <= l2 * 4;
    const int64_t most = in_l2 ? p * 9 / 20 : p * 7 / 20;
    const int64_t count = m < 0 ? p / 8 : m;
    const double products = 0.02 * double(p), sums = 0.03 * double(count);
    const double with_gram = double(p) * (count <= most ? sums : products);
    const double with_residual = double(n) * (sums + products);
    const double iterations = double(batch) * double(std::min(kExpected, max_iter));
    const bool gram =
        p * p * size <= kMostBytes &&
        iterations * with_gram + double(n) * double(p) * products < iterations * with_residual;
    const int64_t width = std::clamp<int64_t>(l2 / 4 / (p * size) / 16 * 16, 16, 256);
    return {gram, gram && near, most, std::min(width, p),
            panel_rows(p, size, gram && !near ? 1024 : 256)};
}

/// The first row whose objective rose, whatever the thread that found it.
struct Rise {
    int64_t row = -1, iteration = 0;
    double by = 0;
};

/// The state of one panel at a time, of one thread.
template <class T>
class Panel {
  public:
    Panel(const IhtProblem<T>& f, const Plan& plan, const Dictionary<T>& d, int64_t rows)
        : f_(f),
          plan_(plan),
          d_(d),
          capacity_(iht_capacity(f.p, f.m)),
          values_(rows * capacity_),
          half_xx_(rows),
          b_(plan.gram ? rows * f.p : 0),
          q_(plan.by_rows && always_sparse() ? 0 : rows * f.p),
          z_(plan.gram && !always_sparse() ? rows * f.p : 0),
          residual_(rows * d.n),
          packed_(plan.gram && !plan.by_rows ? f.p * plan.width : 0),
          indices_(rows * capacity_),
          count_(rows),
          status_(rows),
          workspace_(iht_workspace<T>(f.p, f.m)) {}

    T* values(int64_t r) { return values_.get() + r * capacity_; }
    int32_t* indices(int64_t r) { return indices_.get() + r * capacity_; }
    int32_t& count(int64_t r) { return count_.get()[r]; }

    /// Iterates the rows x [rows, n] from their codes to the end. Returns the first row whose
    /// objective rose, or -1.
    int64_t run(Matrix<const T> x, int64_t* iterations, bool* converged, T* first, T* objective,
                History<T>* history) {
        std::fill_n(iterations, x.rows, int64_t(0));
        std::fill_n(converged, x.rows, false);
        std::fill_n(status_.get(), x.rows, IhtStatus::running);
        for (int64_t r = 0; r < x.rows; ++r)
            half_xx_.get()[r] = half_square(x.data + r * x.row_stride, x.cols);
        if (plan_.gram) d_.correlations(x, b_.get());
        IhtRows<T> s{values_.get(), indices_.get(), capacity_,      count_.get(), iterations,
                     status_.get(), converged,      half_xx_.get(), first,        objective,
                     nullptr,       x.rows,         f_.max_iter};
        active_.resize(size_t(x.rows));
        for (int64_t r = 0; r < x.rows; ++r) active_[size_t(r)] = int32_t(r);
        while (!active_.empty()) {
            if (history) {
                s.limit = history->grow(active_, iterations);
                s.history = history->pointers.data();
            }
            if (plan_.gram) {
                iht_kernels<T>().finish(f_, s, active_.data(), int64_t(active_.size()), b_.get(),
                                        d_.gram.get(), workspace_.get());
                retire(active_, status_.get());
            }
            if (plan_.by_rows)
                iht_kernels<T>().iterate(f_, s, active_.data(), int64_t(active_.size()), b_.get(),
                                         d_.gram.get(), plan_.most, workspace_.get());
            else if (!active_.empty())
                pass(s, x, active_);
            retire(active_, status_.get());
            if (!plan_.by_rows || always_sparse()) continue;
            dense_.clear();
            for (const int32_t r : active_)
                if (count_.get()[r] > plan_.most) dense_.push_back(r);
            if (!dense_.empty()) pass(s, x, dense_);
            retire(active_, status_.get());
        }
        for (int64_t r = 0; r < x.rows; ++r)
            if (status_.get()[r] == IhtStatus::rose) return r;
        report(s, x, history);
        return -1;
    }

  private:
    bool always_sparse() const { return f_.m >= 0 && f_.m <= plan_.most; }

    /// The objective of the final codes from their residuals, in which nothing cancels: n count
    /// multiply-adds a row.
    void report(const IhtRows<T>& s, Matrix<const T> x, History<T>* history) {
        active_.resize(size_t(x.rows));
        for (int64_t r = 0; r < x.rows; ++r) active_[size_t(r)] = int32_t(r);
        iht_kernels<T>().gather(s, active_.data(), x.rows, x.data, x.row_stride, d_.atoms.get(),
                                d_.n, residual_.get(), d_.n);
        for (int64_t r = 0; r < x.rows; ++r) {
            s.objective[r] =
                half_square(residual_.get() + r * d_.n, d_.n) + f_.penalty * T(s.count[r]);
            if (history) history->at(s.iterations[r], r) = s.objective[r];
        }
    }

    /// One iteration of the given rows: all q as the plan has it, then the selection.
    void pass(const IhtRows<T>& s, Matrix<const T> x, const std::vector<int32_t>& rows) {
        const auto& kernels = iht_kernels<T>();
        const int64_t n = int64_t(rows.size());
        T* q = q_.get();
        if (!plan_.gram) {
            kernels.gather(s, rows.data(), n, x.data, x.row_stride, d_.atoms.get(), d_.n,
                           residual_.get(), d_.n);
            d_.correlations(row_major<const T>(residual_.get(), n, d_.n), q);
            kernels.advance(f_, s, rows.data(), n, nullptr, residual_.get(), d_.n, q,
                            workspace_.get());
            return;
        }
        order_ = rows;
        const auto dense = std::stable_partition(
            order_.begin(), order_.end(), [&](int32_t r) { return s.count[r] <= plan_.most; });
        const int64_t sparse = dense - order_.begin();
        if (sparse > 0) add_by_panels(s, sparse, q);
        if (sparse < n) add_dense(s, sparse, n, q);
        kernels.advance(f_, s, order_.data(), n, b_.get(), nullptr, 0, q, workspace_.get());
    }

    /// q of the first n rows of order_, a column panel of -mu D'D (symmetric) at a time.
    void add_by_panels(const IhtRows<T>& s, int64_t n, T* q) {
        const int64_t p = f_.p;
        for (int64_t c = 0; c < p; c += plan_.width) {
            const int64_t columns = std::min(plan_.width, p - c);
            for (int64_t j = 0; j < p; ++j)
                std::copy_n(d_.gram.get() + j * p + c, columns, packed_.get() + j * columns);
            iht_kernels<T>().gather(s, order_.data(), n, b_.get() + c, p, packed_.get(), columns,
                                    q + c, p);
        }
    }

    /// q of the rows [begin, end) of order_ by the product with their dense codes.
    void add_dense(const IhtRows<T>& s, int64_t begin, int64_t end, T* q) {
        const int64_t p = f_.p, n = end - begin;
        std::fill_n(z_.get(), n * p, T(0));
        for (int64_t i = 0; i < n; ++i) {
            const int64_t r = order_[size_t(begin + i)];
            for (int64_t j = 0; j < s.count[r]; ++j) z_.get()[i * p + indices(r)[j]] = values(r)[j];
            std::copy_n(b_.get() + r * p, p, q + (begin + i) * p);
        }
        add_mm<T>(row_major(q + begin * p, n, p), row_major<const T>(z_.get(), n, p),
                  row_major<const T>(d_.gram.get(), p, p));
    }

    const IhtProblem<T>& f_;
    const Plan& plan_;
    const Dictionary<T>& d_;
    const int64_t capacity_;
    Buffer<T> values_, half_xx_, b_, q_, z_, residual_, packed_;
    Buffer<int32_t> indices_, count_;
    Buffer<IhtStatus> status_;
    Buffer<char> workspace_;
    std::vector<int32_t> active_, dense_, order_;
};

/// Runs all rows. load(panel, b, rows) puts their start into the panel, store takes their codes.
template <class T, class Load, class Store>
Course solve(Tensor x, Tensor d, const IhtProblem<T>& f, bool with_history, const Load& load,
             const Store& store) {
    const Matrix<const T> xm = row_major_matrix<T>(x), dm = plain_matrix<T>(d);
    const int64_t batch = xm.rows;
    Course out(x, batch, with_history);
    if (batch == 0) return out;
    int64_t* iterations = static_cast<int64_t*>(out.iterations.mutable_data_ptr());
    bool* converged = static_cast<bool*>(out.converged.mutable_data_ptr());
    const Buffer<T> ends(2 * batch);
    const Plan plan = make_plan<T>(batch, xm.cols, f.p, f.m, f.max_iter);
    const Dictionary<T> dictionary(dm, f.step, plan.gram, batch);
    std::mutex mutex;
    std::vector<History<T>> histories;
    Rise rise;

    torch::stable::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
        const int64_t most = std::min(plan.rows, end - begin);
        Panel<T> panel(f, plan, dictionary, most);
        for (int64_t b = begin; b < end; b += most) {
            const int64_t rows = std::min(most, end - b);
            load(panel, b, rows);
            History<T> history{b, rows, {}, {}};
            T *first = ends.get() + b, *objective = first + batch;
            const int64_t bad = panel.run(xm.range(b, b + rows), iterations + b, converged + b,
                                          first, objective, with_history ? &history : nullptr);
            store(panel, b, rows);
            const std::lock_guard<std::mutex> lock(mutex);
            if (with_history) histories.push_back(std::move(history));
            if (bad >= 0 && (rise.row < 0 || b + bad < rise.row))
                rise = {b + bad, iterations[b + bad], double(objective[bad])};
        }
    });
    STD_TORCH_CHECK(rise.row < 0,
                    "the objective rose: the step is too large for D, or the estimate of ||D||_2 "
                    "too small; give a smaller step (row ",
                    rise.row, ", iteration ", rise.iteration, ", rise ", rise.by, ")");
    if (!with_history) {
        std::copy_n(ends.get(), 2 * batch, static_cast<T*>(out.objective.mutable_data_ptr()));
        return out;
    }
    out.objective = join(x, histories, iterations, batch);
    return out;
}

using TopMResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
TopMResult run_top_m(Tensor x, Tensor d, const T* start_values, const int64_t* start_indices,
                     int64_t m, double step, double tol, int64_t max_iter, bool history,
                     bool positive) {
    const int64_t batch = x.size(0);
    const IhtProblem<T> f{d.size(1), m, T(0), T(0), T(step), tol, max_iter, positive};
    Tensor values = fresh({batch, m}, x.scalar_type()),
           indices = fresh({batch, m}, ScalarType::Long);
    T* v = static_cast<T*>(values.mutable_data_ptr());
    int64_t* idx = static_cast<int64_t*>(indices.mutable_data_ptr());
    const auto load = [&](Panel<T>& panel, int64_t b, int64_t rows) {
        for (int64_t r = 0; r < rows; ++r) {
            panel.count(r) = start_values ? int32_t(m) : 0;
            if (!start_values) continue;
            std::copy_n(start_values + (b + r) * m, m, panel.values(r));
            std::copy_n(start_indices + (b + r) * m, m, panel.indices(r));
        }
    };
    const auto store = [&](Panel<T>& panel, int64_t b, int64_t rows) {
        for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(panel.values(r), m, v + (b + r) * m);
            std::copy_n(panel.indices(r), m, idx + (b + r) * m);
        }
    };
    Course c = solve<T>(x, d, f, history, load, store);
    return {values, indices, c.iterations, c.converged, c.objective};
}

using L0Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
L0Result run_l0(Tensor x, Tensor d, const T* start, double lam, double step, double tol,
                int64_t max_iter, bool history, bool positive) {
    const int64_t batch = x.size(0), p = d.size(1);
    const IhtProblem<T> f{p,        -1,      T(std::sqrt(2 * lam * step)), T(lam), T(step), tol,
                          max_iter, positive};
    Tensor code = torch::stable::new_zeros(x, {batch, p});
    T* z = static_cast<T*>(code.mutable_data_ptr());
    const auto load = [&](Panel<T>& panel, int64_t b, int64_t rows) {
        for (int64_t r = 0; r < rows; ++r)
            panel.count(r) = start ? int32_t(unit_kernels<T>().compress(
                                         start + (b + r) * p, p, panel.indices(r), panel.values(r)))
                                   : 0;
    };
    const auto store = [&](Panel<T>& panel, int64_t b, int64_t rows) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t j = 0; j < panel.count(r); ++j)
                z[(b + r) * p + panel.indices(r)[j]] = panel.values(r)[j];
    };
    Course c = solve<T>(x, d, f, history, load, store);
    return {code, c.iterations, c.converged, c.objective};
}

}  // namespace

TopMResult iht_top_m(Tensor x, Tensor D, std::optional<Tensor> values,
                     std::optional<Tensor> indices, int64_t m, double step, double tol,
                     int64_t max_iter, bool history, bool positive) {
    check_solver("iht_top_m", x, D, step, max_iter);
    const int64_t batch = x.size(0), p = D.size(1);
    STD_TORCH_CHECK(m >= 0 && m <= p, "iht_top_m: m must be in [0, ", p, "], got ", m);
    STD_TORCH_CHECK(values.has_value() == indices.has_value(),
                    "iht_top_m: a start is values and indices, or neither");
    if (values) {
        for (const Tensor& t : {*values, *indices})
            STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == batch && t.size(1) == m,
                            "iht_top_m: the start must be [B, m]");
        STD_TORCH_CHECK(
            values->scalar_type() == x.scalar_type() && indices->scalar_type() == ScalarType::Long,
            "iht_top_m: the start must have the dtype of x and int64 indices");
        check_indices(*indices, p, "iht_top_m");
        values = torch::stable::contiguous(*values);
        indices = torch::stable::contiguous(*indices);
    }
    const void* v = values ? values->const_data_ptr() : nullptr;
    const int64_t* idx = indices ? static_cast<const int64_t*>(indices->const_data_ptr()) : nullptr;
    if (x.scalar_type() == ScalarType::Double)
        return run_top_m<double>(x, D, static_cast<const double*>(v), idx, m, step, tol, max_iter,
                                 history, positive);
    return run_top_m<float>(x, D, static_cast<const float*>(v), idx, m, step, tol, max_iter,
                            history, positive);
}

L0Result iht_l0(Tensor x, Tensor D, std::optional<Tensor> start, double lam, double step,
                double tol, int64_t max_iter, bool history, bool positive) {
    check_solver("iht_l0", x, D, step, max_iter);
    STD_TORCH_CHECK(lam > 0, "iht_l0: lam must be > 0, got ", lam);
    const void* a = dense_start("iht_l0", x, D, start);
    if (x.scalar_type() == ScalarType::Double)
        return run_l0<double>(x, D, static_cast<const double*>(a), lam, step, tol, max_iter,
                              history, positive);
    return run_l0<float>(x, D, static_cast<const float*>(a), lam, step, tol, max_iter, history,
                         positive);
}

}  // namespace deepl0::torch_ops
