// The kernels that a library registers, by name: what stands in its place where it is asked for
// their addresses.
#pragma once

#include <map>
#include <string>

#include "torch/native.h"

namespace deepl0::torch_ops {

class Addresses {
  public:
    template <class Implement>
    explicit Addresses(const Implement& implement) {
        implement(*this);
    }
    void impl(const char* name, Boxed kernel) { kernels_[name] = kernel; }
    Boxed of(const std::string& name) const {
        const auto found = kernels_.find(name);
        return found == kernels_.end() ? nullptr : found->second;
    }

  private:
    std::map<std::string, Boxed> kernels_;
};

}  // namespace deepl0::torch_ops
