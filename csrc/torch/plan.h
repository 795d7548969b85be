// Encoders over weights that are kept ready (dk.prepare), by pointers alone: what the Python object
// of csrc/plan.cpp calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace deepl0::torch_ops {

/// A float32 matrix, or several [count, rows, cols]; of each one stride is 1.
struct PlanMatrix {
    const float* data = nullptr;  // null: there is none
    int64_t count = 1, rows = 0, cols = 0;
    int64_t stride = 0, row_stride = 0, col_stride = 0;
    bool per_step = false;  // three dimensions
};

/// Thresholds as encode_l0 takes them.
struct PlanThresholds {
    const float* data;
    int64_t dims;  // 0: one number, 1: [p], 2: [stages, p]
    double sigma;
    std::string kind;
};

/// Refers to the memory of the weights and makes of it what calls ask for. Calls may come from
/// several threads. x: float32, contiguous, at least one row.
class Plan {
  public:
    /// bias: [p], or null. code: the dtype that codes are rounded to.
    Plan(const PlanMatrix& w, const PlanMatrix& s, const PlanMatrix& d, const float* bias,
         DType code);
    ~Plan();

    /// values and indices: [rows, m.back()]. factored: stages with D, of m entries each; else
    /// m.size() stages of equal m.
    void encode_top_m(const float* x, int64_t rows, const std::vector<int64_t>& m,
                      const std::vector<float>& steps, bool factored, bool positive, float* values,
                      int64_t* indices) const;
    /// z: [rows, p].
    void encode_l0(const float* x, int64_t rows, const PlanThresholds& theta, int64_t stages,
                   const std::vector<float>& steps, bool factored, float* z) const;
    /// Bytes that are kept so far.
    int64_t bytes() const;

  private:
    struct Weights;
    std::unique_ptr<Weights> weights_;
};

}  // namespace deepl0::torch_ops
