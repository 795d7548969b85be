// FISTA: panels of rows. Dense codes go through a matrix product in every iteration, all of a panel
// together; a row whose code has become sparse goes on alone to its end. Panels do not depend on
// the number of threads, nor does any result.
#include "core/fista.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "torch/course.h"
#include "torch/dictionary.h"

namespace deepl0::torch_ops {
namespace {

/// How q = mu D'(x - D a) is formed, chosen by make_plan.
struct Plan {
    bool gram;      // -mu D'D is formed: up to `most` nonzeros its rows are summed up
    bool residual;  // a dense product goes through x - D a, else through D'D
    int64_t most;   // ... and without D'D, D a is a sum of atoms up to as many
    int64_t rows;   // of a panel of x
};

/// In ns a multiply-add of a product and of a sum of rows, float32. Where codes are dense enough
/// for it to matter the time is flat (5 %, n = 256, p = 512) for most = 120 to 220 with the own
/// product on Zen 5, for 190 to 340 with MKL on Zen 3 in float32 and float64, and at n = p = 1024
/// for most = 130 to 680. Few codes have more than p / 10 nonzeros on their way. When to form D'D
/// is estimated.
template <class T>
Plan make_plan(int64_t batch, int64_t n, int64_t p, int64_t max_iter) {
    constexpr int64_t kMostBytes = int64_t(256) << 20;
    const bool own = sizeof(T) == 4 && product_pays();
    const int64_t size = sizeof(T);
    const bool residual = 2 * n < p;
    const double product = own ? 0.008 : 0.016, sum = 0.024;
    const int64_t most = int64_t(double(p) * product / sum);
    const double count = double(p) / 10, iterations = double(std::min<int64_t>(30, max_iter));
    const double with_gram = iterations * sum * double(p) * count;
    const double without = iterations * double(n) * (sum * count + product * double(p));
    const bool gram = p * p * size <= kMostBytes &&
                      double(batch) * with_gram + product * double(n) * double(p) * double(p) <
                          double(batch) * without;
    const int64_t rows = std::clamp<int64_t>((batch / 8 + 15) / 16 * 16, 32, 256);
    return {gram, residual || !gram, most, panel_rows(p, size, rows)};
}

/// The largest b, or |b| where codes may be negative; at least 0.
template <class T>
T largest(const T* b, int64_t p, bool positive) {
    T most = 0;
    for (int64_t i = 0; i < p; ++i) most = std::max(most, positive ? b[i] : std::fabs(b[i]));
    return most;
}

/// And the products with dense codes.
template <class T>
struct DenseDictionary : Dictionary<T> {
    std::optional<Product<T>> with_gram, reconstruction;

    DenseDictionary(Matrix<const T> d, T step, const Plan& plan, int64_t batch)
        : Dictionary<T>(d, step, plan.gram, batch) {
        if (plan.residual)
            reconstruction.emplace(d, batch);
        else
            with_gram.emplace(row_major<const T>(this->gram.get(), d.cols, d.cols), batch);
    }
};

/// The state of one panel at a time, of one thread.
template <class T>
class Panel {
  public:
    Panel(const FistaProblem<T>& f, const Plan& plan, const DenseDictionary<T>& d, int64_t rows)
        : f_(f),
          plan_(plan),
          d_(d),
          even_(rows * f.p),
          odd_(rows * f.p),
          slopes_(rows * f.p),
          b_(rows * f.p),
          q_(rows * f.p),
          z_(rows * f.p),
          residual_(rows * d.n),
          half_xx_(rows),
          t_(rows),
          momentum_(rows),
          threshold_(rows),
          count_(rows),
          status_(rows),
          workspace_(fista_workspace<T>(f.p)) {}

    /// Solves for the rows x [rows, n], from 0 or start [rows, p], and writes their codes [rows,
    /// p].
    void run(Matrix<const T> x, const T* start, T* codes, int64_t* iterations, bool* converged,
             T* first, T* objective, History<T>* history) {
        const int64_t p = f_.p, rows = x.rows;
        std::fill_n(slopes_.get(), rows * p, T(0));
        for (T* code : {even_.get(), odd_.get()})
            start ? std::copy_n(start, rows * p, code) : std::fill_n(code, rows * p, T(0));
        std::fill_n(t_.get(), rows, T(1));
        std::fill_n(momentum_.get(), rows, T(0));
        for (int64_t r = 0; r < rows; ++r) {
            const T* code = even_.get() + r * p;
            count_.get()[r] = start ? int32_t(p - std::count(code, code + p, T(0))) : 0;
        }
        std::fill_n(status_.get(), rows, IhtStatus::running);
        std::fill_n(iterations, rows, int64_t(0));
        std::fill_n(converged, rows, false);
        for (int64_t r = 0; r < rows; ++r)
            first[r] = half_xx_.get()[r] = half_square(x.data + r * x.row_stride, x.cols);
        d_.correlations(x, b_.get());
        for (int64_t r = 0; r < rows; ++r)
            threshold_.get()[r] = start ? f_.threshold : largest(b_.get() + r * p, p, f_.positive);

        FistaRows<T> s{{even_.get(), odd_.get()},
                       slopes_.get(),
                       t_.get(),
                       momentum_.get(),
                       threshold_.get(),
                       count_.get(),
                       iterations,
                       status_.get(),
                       converged,
                       half_xx_.get(),
                       objective,
                       nullptr,
                       rows,
                       f_.max_iter,
                       start ? first : nullptr};
        active_.resize(size_t(rows));
        for (int64_t r = 0; r < rows; ++r) active_[size_t(r)] = int32_t(r);
        const auto& kernels = fista_kernels<T>();
        for (bool at_zero = !start; !active_.empty(); at_zero = false) {
            if (history) {
                s.limit = history->grow(active_, iterations);
                s.history = history->pointers.data();
            }
            if (at_zero) {
                kernels.advance(f_, s, active_.data(), rows, b_.get(), nullptr, false);
                continue;
            }
            if (plan_.gram)
                kernels.iterate(f_, s, active_.data(), int64_t(active_.size()), b_.get(),
                                d_.gram.get(), plan_.most, workspace_.get());
            retire(active_, status_.get());
            dense_.clear();
            for (const int32_t r : active_)
                if (!plan_.gram || count_.get()[r] > plan_.most) dense_.push_back(r);
            if (dense_.empty()) continue;
            const int64_t n = int64_t(dense_.size());
            if (plan_.residual)
                by_residual(s, x);
            else
                (*d_.with_gram)(dense_codes(s, n), q_.get());
            kernels.advance(f_, s, dense_.data(), n, b_.get(), q_.get(), !plan_.residual);
            retire(active_, status_.get());
        }
        for (int64_t r = 0; r < rows; ++r)
            std::copy_n(s.codes[iterations[r] % 2] + r * p, p, codes + r * p);
        report(s, x, history);
    }

  private:
    /// The objective of the final codes from their residuals, in which nothing cancels: n count
    /// multiply-adds a row.
    void report(const FistaRows<T>& s, Matrix<const T> x, History<T>* history) {
        active_.resize(size_t(x.rows));
        for (int64_t r = 0; r < x.rows; ++r) active_[size_t(r)] = int32_t(r);
        fista_kernels<T>().residual(f_, s, active_.data(), x.rows, x.data, x.row_stride,
                                    d_.atoms.get(), d_.n, residual_.get(), workspace_.get());
        for (int64_t r = 0; r < x.rows; ++r) {
            const T* code = s.codes[s.iterations[r] % 2] + r * f_.p;
            double size = 0;
            for (int64_t j = 0; j < f_.p; ++j) size += std::fabs(double(code[j]));
            s.objective[r] =
                half_square(residual_.get() + r * d_.n, d_.n) + T(double(f_.lam) * size);
            if (history) history->at(s.iterations[r], r) = s.objective[r];
        }
    }

    /// The codes of the first n of the dense rows, copied together unless they are.
    Matrix<const T> dense_codes(const FistaRows<T>& s, int64_t n) {
        const int64_t p = f_.p;
        const auto code = [&](int64_t i) {
            const int32_t r = dense_[size_t(i)];
            return s.codes[s.iterations[r] % 2] + r * p;
        };
        bool together = true;
        for (int64_t i = 1; i < n; ++i) together = together && code(i) == code(0) + i * p;
        if (together) return row_major<const T>(code(0), n, p);
        for (int64_t i = 0; i < n; ++i) std::copy_n(code(i), p, z_.get() + i * p);
        return row_major<const T>(z_.get(), n, p);
    }

    /// q of the dense rows: those with many nonzeros first, by a product with D.
    void by_residual(const FistaRows<T>& s, Matrix<const T> x) {
        const int64_t n = int64_t(dense_.size());
        const auto sparse = std::stable_partition(
            dense_.begin(), dense_.end(), [&](int32_t r) { return s.count[r] > plan_.most; });
        const int64_t many = sparse - dense_.begin();
        T* residual = residual_.get();
        if (many > 0) {
            (*d_.reconstruction)(dense_codes(s, many), residual);
            for (int64_t i = 0; i < many; ++i) {
                const T* row = x.data + dense_[size_t(i)] * x.row_stride;
                for (int64_t c = 0; c < d_.n; ++c)
                    residual[i * d_.n + c] = row[c] - residual[i * d_.n + c];
            }
        }
        fista_kernels<T>().residual(f_, s, dense_.data() + many, n - many, x.data, x.row_stride,
                                    d_.atoms.get(), d_.n, residual + many * d_.n, workspace_.get());
        d_.correlations(row_major<const T>(residual, n, d_.n), q_.get());
    }

    const FistaProblem<T>& f_;
    const Plan& plan_;
    const DenseDictionary<T>& d_;
    Buffer<T> even_, odd_, slopes_, b_, q_, z_, residual_, half_xx_, t_, momentum_, threshold_;
    Buffer<int32_t> count_;
    Buffer<IhtStatus> status_;
    Buffer<char> workspace_;
    std::vector<int32_t> active_, dense_;
};

using Result = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Result run(Tensor x, Tensor d, const T* start, double lam, double step, double tol,
           int64_t max_iter, bool with_history, bool positive) {
    const Matrix<const T> xm = row_major_matrix<T>(x), dm = plain_matrix<T>(d);
    const int64_t batch = xm.rows, p = dm.cols;
    Tensor code = fresh({batch, p}, x.scalar_type());
    Course out(x, batch, with_history);
    if (batch == 0) return {code, out.iterations, out.converged, out.objective};
    const FistaProblem<T> f{p, T(step), T(lam), T(step * lam), tol, max_iter, positive};
    const Plan plan = make_plan<T>(batch, xm.cols, p, max_iter);
    const DenseDictionary<T> dictionary(dm, f.step, plan, batch);
    T* codes = static_cast<T*>(code.mutable_data_ptr());
    int64_t* iterations = static_cast<int64_t*>(out.iterations.mutable_data_ptr());
    bool* converged = static_cast<bool*>(out.converged.mutable_data_ptr());
    const Buffer<T> ends(2 * batch);
    const int64_t panels = (batch + plan.rows - 1) / plan.rows;
    std::vector<History<T>> histories(size_t(with_history ? panels : 0));
    each(panels, [&](int64_t begin, int64_t end) {
        Panel<T> panel(f, plan, dictionary, std::min(plan.rows, batch));
        for (int64_t i = begin; i < end; ++i) {
            const int64_t b = i * plan.rows, rows = std::min(plan.rows, batch - b);
            History<T>* history = nullptr;
            if (with_history) {
                history = &histories[size_t(i)];
                history->begin = b;
                history->rows = rows;
            }
            T *first = ends.get() + b, *objective = first + batch;
            panel.run(xm.range(b, b + rows), start ? start + b * p : nullptr, codes + b * p,
                      iterations + b, converged + b, first, objective, history);
        }
    });
    if (with_history)
        out.objective = join(x, histories, iterations, batch);
    else
        std::copy_n(ends.get(), 2 * batch, static_cast<T*>(out.objective.mutable_data_ptr()));
    return {code, out.iterations, out.converged, out.objective};
}

}  // namespace

Result fista(Tensor x, Tensor D, std::optional<Tensor> start, double lam, double step, double tol,
             int64_t max_iter, bool history, bool positive) {
    check_solver("fista", x, D, step, max_iter);
    STD_TORCH_CHECK(lam > 0, "fista: lam must be > 0, got ", lam);
    const void* a = dense_start("fista", x, D, start);
    if (x.scalar_type() == ScalarType::Double)
        return run<double>(x, D, static_cast<const double*>(a), lam, step, tol, max_iter, history,
                           positive);
    return run<float>(x, D, static_cast<const float*>(a), lam, step, tol, max_iter, history,
                      positive);
}

}  // namespace deepl0::torch_ops
