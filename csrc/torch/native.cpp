#include "torch/native.h"

#include "torch/bindings.h"

namespace deepl0::torch_ops {

namespace boxed = torch::stable::detail;

void Stack::push(uint64_t value, Kind kind) {
    STD_TORCH_CHECK(count_ < kMost, "a call of more than ", kMost, " arguments");
    values_[count_] = value;
    kinds_[count_++] = kind;
}

void* Stack::handle(int i) const { return boxed::to<AtenTensorHandle>(values_[i]); }

bool Stack::tensor(void* given) {
    const auto handle = static_cast<AtenTensorHandle>(given);
    push(boxed::from(handle), Kind::tensor);
    int32_t type = 0, device = 0, layout = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(handle, &layout));
    if (device_type_ < 0) {
        device_type_ = type;
        device_ = device;
    }
    STD_TORCH_CHECK(type == device_type_ && device == device_, "tensors on several devices");
    if (layout != aoti_torch_layout_strided()) return false;
    const void* data = nullptr;
    int64_t entries = 0;
    if (torch_get_const_data_ptr(handle, &data) != AOTI_TORCH_SUCCESS) return false;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &entries));
    return data || entries == 0;
}

bool Stack::optional_tensor(void* handle) {
    if (!handle) {
        push(boxed::from(std::nullopt), Kind::plain);
        return true;
    }
    const bool good = tensor(handle);
    values_[count_ - 1] = boxed::from(new StableIValue(values_[count_ - 1]));
    kinds_[count_ - 1] = Kind::optional;
    return good;
}

void Stack::integer(int64_t value) { push(boxed::from(value), Kind::plain); }
void Stack::number(double value) { push(boxed::from(value), Kind::plain); }
void Stack::flag(bool value) { push(boxed::from(value), Kind::plain); }

void Stack::text(const char* value, size_t length) {
    StringHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_new_string_handle(value, length, &handle));
    push(boxed::from(handle), Kind::text);
}

void Stack::integers(const std::vector<int64_t>& values) { push(boxed::from(values), Kind::list); }

void Stack::call(Boxed kernel, int results) {
    const int arguments = count_;
    count_ = 0;  // the kernel's, whatever comes
    kernel(values_, uint64_t(arguments), uint64_t(results));
    for (; count_ < results; ++count_) kinds_[count_] = Kind::tensor;
}

void Stack::clear() {
    for (int i = 0; i < count_; ++i) {
        switch (kinds_[i]) {
            case Kind::plain:
                break;
            case Kind::tensor:
                boxed::to<Tensor>(values_[i]);
                break;
            case Kind::optional:
                boxed::to<std::optional<Tensor>>(values_[i]);
                break;
            case Kind::text:
                TORCH_ERROR_CODE_CHECK(torch_delete_string(boxed::to<StringHandle>(values_[i])));
                break;
            case Kind::list:
                boxed::to<std::vector<int64_t>>(values_[i]);
                break;
        }
    }
    count_ = 0;
}

bool grad_mode() { return aoti_torch_grad_mode_is_enabled(); }
void set_grad_mode(bool on) { aoti_torch_grad_mode_set_enabled(on); }

Stack::~Stack() {
    try {
        clear();
    } catch (const std::exception&) {  // only of torch's deleters, which do not fail
    }
}

}  // namespace deepl0::torch_ops
