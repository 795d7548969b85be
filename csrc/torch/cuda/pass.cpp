#include "torch/cuda/pass.h"

#include <array>

#include "cuda/transpose.h"
#ifdef DEEPL0_CUDA_EMULATED
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#endif

namespace deepl0::torch_ops::on_cuda {

namespace {

constexpr int64_t kAlignment = 256;

}  // namespace

Piece Workspace::bytes(int64_t count) {
    const Piece piece{size_, count};
    size_ += (count + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
}

void Workspace::allocate(const Tensor& like) {
    memory_ = empty(like, {std::max(size_, kAlignment) / 4}, ScalarType::Float);
    data_ = static_cast<char*>(memory_->mutable_data_ptr());
}

void* Workspace::address(Piece piece) const {
    if (data_ == nullptr || piece.bytes == 0) return nullptr;
    may_touch(data_ + piece.offset, piece.bytes);
    return data_ + piece.offset;
}

Tensor Workspace::matrix(Piece piece, int64_t rows, int64_t columns, ScalarType type) const {
    if (type == ScalarType::Float)
        return view(*memory_, rows, columns, columns, 1, piece.offset / 4);
    // A view has the dtype of its memory; this one borrows it, for as long as the pass lasts.
    const std::array<int64_t, 2> sizes{rows, columns}, strides{columns, 1};
    int32_t device_type = 0, device = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(memory_->get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(memory_->get(), &device));
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
        data_ == nullptr ? nullptr : data_ + piece.offset, 2, sizes.data(), strides.data(), 0,
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type, device,
        &handle));
    return Tensor(handle);
}

Tensor view(const Tensor& t, int64_t rows, int64_t columns, int64_t row_stride,
            int64_t column_stride, int64_t offset) {
    const std::array<int64_t, 2> sizes{rows, columns}, strides{row_stride, column_stride};
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch__reinterpret_tensor(t.get(), 2, sizes.data(), strides.data(), offset, &handle));
    return Tensor(handle);
}

Tensor transposed(const Tensor& t) {
    return view(t, t.size(1), t.size(0), t.stride(1), t.stride(0));
}

Tensor rows_of(const Tensor& t, int64_t begin, int64_t count) {
    if (begin == 0 && count == t.size(0)) return t;
    return view(t, count, t.size(1), t.stride(0), t.stride(1), begin * t.stride(0));
}

void product(Tensor& out, const Tensor& a, const Tensor& b) {
#ifdef DEEPL0_CUDA_EMULATED
    if (!out.is_cpu()) return;  // without data
    const ScalarType type = out.scalar_type();
    // torch has no product of half types into float32 there.
    const Tensor left = cast(a, type), right = cast(b, type);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
#else
    if (a.scalar_type() == out.scalar_type()) {
        using Product = AOTITorchError(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle);
        static const auto mm = of_torch_cuda<Product>("aoti_torch_cuda_mm_out");
        TORCH_ERROR_CODE_CHECK(mm(out.get(), a.get(), b.get()));
        return;
    }
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
    TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // owned by us
#endif
}

void add_product(Tensor& out, const Tensor& base, const Tensor& a, const Tensor& b) {
#ifdef DEEPL0_CUDA_EMULATED
    if (!out.is_cpu()) return;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), base.get(), a.get(), b.get(), 1.0, 1.0));
#else
    using Sum = AOTITorchError(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
                               AtenTensorHandle, double, double);
    static const auto addmm = of_torch_cuda<Sum>("aoti_torch_cuda_addmm_out");
    TORCH_ERROR_CODE_CHECK(addmm(out.get(), base.get(), a.get(), b.get(), 1.0, 1.0));
#endif
}

bool by_columns(const Tensor& t) {
    const int64_t d = t.dim();
    return t.stride(d - 2) == 1 && t.stride(d - 1) == t.size(d - 2) && t.size(d - 1) > 1;
}

Tensor gradient_of_matrix(const Tensor& t, ScalarType type) {
    std::vector<int64_t> shape = shape_of(t);
    if (!by_columns(t)) return empty(t, shape, type);
    const size_t d = shape.size();
    std::swap(shape[d - 1], shape[d - 2]);
    const Tensor memory = empty(t, shape, type);
    if (d == 2) return transposed(memory);
    const std::array<int64_t, 3> sizes{shape[0], shape[2], shape[1]},
        strides{shape[1] * shape[2], 1, shape[2]};
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch__reinterpret_tensor(memory.get(), 3, sizes.data(), strides.data(), 0, &handle));
    return Tensor(handle);
}

Tensor stage_matrix(const Tensor& s, int64_t k) {
    if (s.dim() == 2) return s;
    return view(s, s.size(1), s.size(2), s.stride(1), s.stride(2), k * s.stride(0));
}

Atoms::Atoms(const Tensor& t, Workspace& workspace)
    : copied_(!(t.stride(0) == 1 && t.stride(1) >= std::max<int64_t>(1, t.size(0)))) {
    if (copied_) piece_ = workspace.bytes(t.numel() * int64_t(element_of(t, "matrix")));
}

void Atoms::make(const Tensor& t, const Workspace& workspace, cudaStream_t stream) {
    if (!copied_) {
        data = data_of(t);
        stride = t.stride(1);
        return;
    }
    rows_.emplace(t, "matrix");
    void* out = workspace.at<void>(piece_);
    cuda::transpose(element_of(t, "matrix"), data_of(rows_->tensor), rows_->stride, t.size(0),
                    t.size(1), out, stream);
    data = out;
    stride = t.size(0);
}

}  // namespace deepl0::torch_ops::on_cuda
