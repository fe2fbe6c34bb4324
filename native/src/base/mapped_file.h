// A file in memory, read-only, by mmap.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace sluice {

class MappedFile {
 public:
  // Throws std::runtime_error: missing, unreadable, empty, or not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Lets the kernel drop the pages of [offset, offset + n) from this process; they come back from the page cache on use.
  void forget(size_t offset, size_t n) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace sluice
