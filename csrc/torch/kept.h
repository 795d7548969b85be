// What a plan (dk.prepare) keeps of weights from call to call.
#pragma once

#include <array>
#include <atomic>
#include <mutex>
#include <optional>

#include "torch/buffer.h"

namespace deepl0::torch_ops {

/// Memory that is filled when it is first asked for, by whichever thread comes first.
class KeptPart {
  public:
    /// fill(data) writes `count` elements. Later calls return what the first has written.
    template <class T, class F>
    const T* get(int64_t count, const F& fill) {
        std::call_once(once_, [&] {
            Buffer<char> made(count * int64_t(sizeof(T)));
            fill(reinterpret_cast<T*>(made.get()));
            data_.emplace(std::move(made));
            bytes_ = count * int64_t(sizeof(T));
        });
        return reinterpret_cast<const T*>(data_->get());
    }
    int64_t bytes() const { return bytes_; }

  private:
    std::once_flag once_;
    std::optional<Buffer<char>> data_;
    std::atomic<int64_t> bytes_{0};
};

/// The parts, each for one layout of one weight. Float32 only.
struct Kept {
    KeptPart product;                // W, for our own product
    KeptPart transposed;             // S'
    KeptPart panels;                 // S' in column panels
    KeptPart atoms;                  // D'
    KeptPart largest;                // the largest modulus of S, NaN if there is one
    std::array<KeptPart, 4> screen;  // W, for each kind of screening
    // Calls to come that do not try int8, after one that it could not decide.
    std::atomic<int> without_int8{0};

    int64_t bytes() const {
        int64_t sum = product.bytes() + transposed.bytes() + panels.bytes() + atoms.bytes();
        for (const KeptPart& part : screen) sum += part.bytes();
        return sum;
    }
};

}  // namespace deepl0::torch_ops
