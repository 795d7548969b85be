// The operators' kernels by their addresses, for calls that the dispatcher has no part in
// (csrc/call.cpp): its calling convention for boxed kernels of the stable ABI, without it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace deepl0::torch_ops {

/// A boxed kernel: takes its arguments from the stack, which are its own then, and leaves results.
using Boxed = void (*)(uint64_t* stack, uint64_t arguments, uint64_t results);

/// The CPU kernel of an operator of torch.ops.deepl0, or null.
Boxed cpu_kernel(const std::string& name);

/// Arguments of one call, and then its results; what nobody has taken is given back at the end.
/// Tensors are handles of the stable ABI, owned by the stack.
class Stack {
  public:
    Stack() = default;
    Stack(const Stack&) = delete;
    ~Stack();

    /// False of what a kernel would misread, as it has no memory of its own. Throws where it is on
    /// another device than the tensors before it.
    bool tensor(void* handle);
    bool optional_tensor(void* handle);  // or null
    void integer(int64_t value);
    void number(double value);
    void flag(bool value);
    void text(const char* value, size_t length);
    void integers(const std::vector<int64_t>& values);

    /// Throws what the kernel throws.
    void call(Boxed kernel, int results);

    /// A result, which stays the stack's.
    void* result(int i) const { return handle(i); }

  private:
    static constexpr int kMost = 12;
    enum class Kind : char { plain, tensor, optional, text, list };

    void push(uint64_t value, Kind kind);
    void* handle(int i) const;
    void clear();

    uint64_t values_[kMost];
    Kind kinds_[kMost];
    int count_ = 0;
    int32_t device_type_ = -1, device_ = -1;
};

/// Whether this thread records gradients.
bool grad_mode();
void set_grad_mode(bool on);

}  // namespace deepl0::torch_ops
