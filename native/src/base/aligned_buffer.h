// Zeroed memory aligned for the widest vectors. Large buffers ask for huge pages: a decode step walks all weights, and
// with 4 KiB pages its time would partly be page walks.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace sluice {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);  // throws std::runtime_error naming the size when the system refuses
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void swap(AlignedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Hands out pieces of large slabs, freed together: a layer's matrices are smaller than a huge page, many of them in one
// slab are not. Slabs smaller than what is asked for give every piece a mapping of its own.
class Arena {
 public:
  explicit Arena(size_t slab_bytes) : slab_bytes_(slab_bytes) {}
  std::byte* take(size_t bytes);  // zeroed, aligned to 64; throws std::runtime_error as AlignedBuffer does

 private:
  size_t slab_bytes_;
  size_t left_ = 0;
  std::byte* next_ = nullptr;
  std::vector<AlignedBuffer> slabs_;
};

}  // namespace sluice
