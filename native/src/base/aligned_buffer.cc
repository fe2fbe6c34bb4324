#include "base/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sluice {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

// Anonymous mappings are zero, page-aligned, and leave no heap hole behind when a model is unloaded.
AlignedBuffer::AlignedBuffer(size_t bytes) {
  if (bytes == 0) return;
  // The kernel starts a mapping at any small page; only whole huge pages inside it can be huge. So large mappings are
  // made longer and cut to a huge page's boundary.
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  void* mapped = ::mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::runtime_error("out of memory: cannot reserve " + std::to_string(bytes >> 20) + " MiB");
  auto* start = static_cast<std::byte*>(mapped);
  if (slack != 0) {
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t kept = (bytes + page - 1) / page * page;
    if (before > 0) ::munmap(start, before);
    if (slack > before + (kept - bytes)) ::munmap(start + before + kept, bytes + slack - before - kept);
    start += before;
#ifdef MADV_HUGEPAGE
    ::madvise(start, bytes, MADV_HUGEPAGE);
#endif
  }
  data_ = start;
  size_ = bytes;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

std::byte* Arena::take(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > left_) {
    slabs_.emplace_back(bytes > slab_bytes_ ? bytes : slab_bytes_);
    next_ = slabs_.back().data();
    left_ = slabs_.back().size();
  }
  std::byte* taken = next_;
  next_ += bytes;
  left_ -= bytes;
  return taken;
}

}  // namespace sluice
