// What the CUDA operators share: device, stream and workspace of a call, pointers of tensors.
#pragma once

#include <vector>

#include "cuda/launch.h"
#include "torch/bindings.h"

namespace deepl0::torch_ops::on_cuda {

#ifdef DEEPL0_CUDA_EMULATED
// The tests run this code on CPU tensors, with kernels that an interpreter executes: it is told
// what memory the kernels of a call may touch.
void begin_call();
void may_touch(const void* data, int64_t bytes);
void fill(void* data, int64_t bytes);  // of new memory, by what a test can tell from a result
cudaStream_t current_stream();
#else
inline void begin_call() {}
inline void may_touch(const void*, int64_t) {}
#endif

/// A C function of libtorch_cuda, looked up in the library that torch has loaded, so that this one
/// loads beside a torch without CUDA.
void* of_torch_cuda(const char* name);
template <class Function>
Function* of_torch_cuda(const char* name) {
    return reinterpret_cast<Function*>(of_torch_cuda(name));
}

/// A contiguous tensor on the device of `like`, by no call of the dispatcher's but the allocation.
Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type);

/// The same of the dtype of `like`; `wanted` false: of shape [0].
inline Tensor empty_if(bool wanted, const Tensor& like, const std::vector<int64_t>& shape) {
    return empty(like, wanted ? shape : std::vector<int64_t>{0}, like.scalar_type());
}

/// While it lives, the device of the tensor is the current one; all kernels go to its stream.
class Call {
  public:
    explicit Call(const Tensor& t);
    explicit Call(int32_t device);
    cudaStream_t stream() const { return stream_; }

    /// Uninitialised memory until the end of the call, from torch's allocator, which orders its
    /// reuse by the stream.
    void* workspace(const Tensor& like, size_t bytes);

  private:
    std::optional<torch::stable::accelerator::DeviceGuard> guard_;
    cudaStream_t stream_ = nullptr;
    std::vector<Tensor> memory_;
};

cuda::DType dtype_of(const Tensor& t, const char* name);

/// Bytes of an element of what only moves.
size_t element_of(const Tensor& t, const char* name);

/// Pointers for kernels.
const void* data_of(const Tensor& t);
void* mutable_data_of(const Tensor& t);
template <class T>
const T* data_of(const Tensor& t) {
    return static_cast<const T*>(data_of(t));
}
template <class T>
T* mutable_data_of(const Tensor& t) {
    return static_cast<T*>(mutable_data_of(t));
}

/// The tensor itself where it is contiguous, which torch need not be asked for.
inline Tensor dense(const Tensor& t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

/// On one device, of that type, contiguous afterwards.
Tensor like(const Tensor& first, Tensor t, ScalarType type, const char* name);
void same_device(const Tensor& first, const Tensor& t, const char* name);

}  // namespace deepl0::torch_ops::on_cuda
