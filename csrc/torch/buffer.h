// Uninitialised memory of the bindings.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace deepl0::torch_ops {

constexpr size_t kHugePage = size_t(2) << 20;

/// Asks for huge pages in memory that holds some. The kernel gives it page by page at the first
/// touch: 12 000 times for a gradient of 50 MB, which takes as long as the sums in it.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
    if (bytes < kHugePage) return;
    const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
    const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

/// Uninitialised memory of one thread or one call, aligned to cache lines.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t n) {
        size_t bytes = size_t(n > 0 ? n : 1) * sizeof(T), alignment = 64;
        if (bytes >= kHugePage) alignment = kHugePage;
        bytes = (bytes + alignment - 1) / alignment * alignment;
        data_.reset(static_cast<T*>(std::aligned_alloc(alignment, bytes)));
        if (!data_) throw std::bad_alloc();
        prefer_huge_pages(data_.get(), bytes);
    }
    T* get() const { return data_.get(); }

  private:
    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> data_;
};

/// The blocks of one task: the first ones from a store on the stack, which for a batch of one is
/// faster than the allocator. Uninitialised, aligned to cache lines.
class Blocks {
  public:
    template <class T>
    T* take(int64_t n) {
        const size_t bytes = (size_t(n) * sizeof(T) + 63) / 64 * 64;
        if (bytes > sizeof store_ - used_) {
            large_.emplace_back(int64_t(bytes));
            return reinterpret_cast<T*>(large_.back().get());
        }
        void* block = store_ + used_;
        used_ += bytes;
        return static_cast<T*>(block);
    }

  private:
    alignas(64) char store_[size_t(48) << 10];
    size_t used_ = 0;
    std::vector<Buffer<char>> large_;
};

}  // namespace deepl0::torch_ops
