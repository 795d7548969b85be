// torch's stable ABI, with errors that say what torch could not do and, where it tells, why.
//
// The ABI of the releases before 2.13 hands out no reason: its headers throw the text of the call
// that failed. Every check of those headers is one of the two macros below (the second came with
// 2.13, in a header of its own), so they are ours before the rest is read.
#pragma once

#include <torch/headeronly/util/shim_utils.h>
#if __has_include(<torch/csrc/stable/macros.h>)
#include <torch/csrc/stable/macros.h>
#endif

namespace deepl0::torch_ops {

/// Throws std::runtime_error for a C function of torch that failed, given the text of its call.
[[noreturn]] void throw_torch_error(const char* call);

}  // namespace deepl0::torch_ops

#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)                   \
    if ((call) != TORCH_SUCCESS) {                     \
        ::deepl0::torch_ops::throw_torch_error(#call); \
    }
#undef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
