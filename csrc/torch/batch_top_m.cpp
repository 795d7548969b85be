#include "core/batch_top_m.h"

#include "torch/bindings.h"
#include "torch/buffer.h"

namespace deepl0::torch_ops {

namespace {

/// Entries of a part that make it worth a thread.
constexpr int64_t kPartEntries = int64_t(1) << 16;

/// A range of rows with the memory of its candidates.
struct Part {
    int64_t begin, end;
    Buffer<char> keys;
    Buffer<int32_t> columns;
    Buffer<int64_t> starts;

    Part(DType dtype, int64_t begin, int64_t end, int64_t capacity)
        : begin(begin),
          end(end),
          keys(capacity * int64_t(batch_key_bytes(dtype))),
          columns(capacity),
          starts(end - begin + 1) {}
    BatchPart view() const { return {keys.get(), columns.get(), starts.get()}; }
    int64_t rows() const { return end - begin; }
    int64_t count() const { return starts.get()[rows()]; }
};

/// The cut of the candidates of all parts.
BatchCut cut_of(const std::vector<Part>& parts, DType dtype, int64_t m) {
    const int64_t bytes = int64_t(batch_key_bytes(dtype));
    int64_t n = 0;
    for (const Part& part : parts) n += part.count();
    const Buffer<char> keys((n + kBatchSlack) * bytes);
    char* to = keys.get();
    for (const Part& part : parts) to = std::copy_n(part.keys.get(), part.count() * bytes, to);
    return batch_top_m_kernels().cut(dtype, keys.get(), n, m);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> batch_top_m(Tensor u, int64_t m, bool positive) {
    const Rows rows(u, "u");
    const int64_t p = rows.cols;
    check_m(m, p);
    STD_TORCH_CHECK(p <= INT32_MAX, "rows of more than ", INT32_MAX,
                    " entries are not supported, got ", p);
    const DType dtype = dtype_of(u, "u");
    const int64_t entries = rows.rows * m;
    Tensor offsets = empty(u, {rows.rows + 1}, ScalarType::Long);
    Tensor values = empty(u, {entries}, u.scalar_type());
    Tensor indices = empty(u, {entries}, ScalarType::Long);
    auto* offsets_data = static_cast<int64_t*>(offsets.mutable_data_ptr());
    if (entries == 0) {
        std::fill_n(offsets_data, rows.rows + 1, int64_t(0));
        return {values, indices, offsets};
    }
    void* values_data = values.mutable_data_ptr();
    auto* indices_data = static_cast<int64_t*>(indices.mutable_data_ptr());
    const BatchTopMKernels& kernels = batch_top_m_kernels();
    const int64_t count =
        std::clamp<int64_t>(rows.rows * p / kPartEntries, 1,
                            std::min<int64_t>(torch::stable::get_num_threads(), rows.rows));
    std::vector<Part> parts;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t begin = rows.rows * i / count, end = rows.rows * (i + 1) / count;
        parts.emplace_back(dtype, begin, end, batch_capacity((end - begin) * p, entries));
    }
    const auto each = [&](const auto& run) {
        torch::stable::parallel_for(0, count, 1, [&](int64_t lo, int64_t hi) {
            for (int64_t i = lo; i < hi; ++i) run(parts[size_t(i)], size_t(i));
        });
    };
    each([&](const Part& part, size_t) {
        const int64_t capacity = batch_capacity(part.rows() * p, entries);
        const Buffer<char> scratch(capacity * int64_t(batch_key_bytes(dtype)));
        kernels.collect(dtype, rows.data, rows.stride, p, entries, positive, part.begin, part.end,
                        part.view(), scratch.get());
    });
    const BatchCut cut = cut_of(parts, dtype, entries);
    // Ties go to the first parts.
    std::vector<int64_t> ties(parts.size());
    int64_t left = cut.ties;
    for (size_t i = 0; i < parts.size(); ++i) {
        ties[i] = left;
        if (i + 1 < parts.size())
            left -= std::min(left, kernels.tied(dtype, parts[i].view(), parts[i].rows(), cut.key));
    }
    each([&](const Part& part, size_t i) {
        kernels.keep(dtype, part.view(), part.rows(), {cut.key, ties[i]});
    });
    std::vector<int64_t> first(parts.size() + 1);
    for (size_t i = 0; i < parts.size(); ++i) first[i + 1] = first[i] + parts[i].count();
    each([&](const Part& part, size_t i) {
        kernels.write(dtype, rows.data, rows.stride, positive, part.begin, part.end, part.view(),
                      first[i], offsets_data, values_data, indices_data);
    });
    offsets_data[rows.rows] = entries;
    return {values, indices, offsets};
}

}  // namespace deepl0::torch_ops
