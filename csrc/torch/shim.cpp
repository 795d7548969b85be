#include "torch/shim.h"

#include <stdexcept>
#include <string>

// Since 2.13: the message of this thread's last exception. Null in an older torch.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace deepl0::torch_ops {

void throw_torch_error(const char* call) {
    // The operator that the dispatcher was to call, else the function: up to its arguments.
    std::string what = call;
    const size_t name = what.find("\"aten::");
    what = name == std::string::npos ? what.substr(0, what.find('('))
                                     : what.substr(name + 1, what.find('"', name + 1) - name - 1);
    const std::string prefix = "aoti_torch_";
    if (what.rfind(prefix, 0) == 0) what.erase(0, prefix.size());
    if (torch_exception_get_what_without_backtrace) {
        what += std::string(": ") + torch_exception_get_what_without_backtrace();
    } else {
        what +=
            ": torch refused, perhaps for want of memory; before 2.13 it gives its reason on "
            "standard error alone";
    }
    throw std::runtime_error(what);
}

}  // namespace deepl0::torch_ops
