#include "io/gguf.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <unordered_set>

namespace sluice {

namespace {

constexpr uint32_t kMaxDims = 4;
constexpr uint64_t kMaxNameBytes = 1024;
constexpr uint64_t kMaxStringBytes = 64u << 20;
constexpr uint64_t kMaxAlignment = 1u << 20;

enum ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

// Reads forward over the header; every read is checked.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("bad GGUF file " + path_ + " at byte " + std::to_string(at_) + ": " + what);
  }
  size_t at() const { return at_; }
  void skip(uint64_t n) {
    if (n > bytes_.size() - at_) fail("ends too early");
    at_ += n;
  }
  template <class T>
  T read() {
    const size_t from = at_;
    skip(sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + from, sizeof value);
    return value;
  }
  std::string read_string(uint64_t limit) {
    const auto length = read<uint64_t>();
    if (length > limit) fail("string of " + std::to_string(length) + " bytes");
    const size_t from = at_;
    skip(length);
    return {reinterpret_cast<const char*>(bytes_.data()) + from, static_cast<size_t>(length)};
  }
  // Each item takes at least item_bytes, so a count the rest of the file cannot hold is a lie: refuse before reserving.
  void check_count(uint64_t count, uint64_t item_bytes, const char* what) const {
    if (count > (bytes_.size() - at_) / item_bytes) fail(std::string("impossible number of ") + what);
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  size_t at_ = 0;
};

uint64_t scalar_bytes(uint32_t type) {
  switch (type) {
    case u8: case i8: case boolean: return 1;
    case u16: case i16: return 2;
    case u32: case i32: case f32: return 4;
    case u64: case i64: case f64: return 8;
    default: return 0;
  }
}

GgufFile::Value read_value(Cursor& in, uint32_t type) {
  switch (type) {
    case u8: return static_cast<int64_t>(in.read<uint8_t>());
    case i8: return static_cast<int64_t>(in.read<int8_t>());
    case u16: return static_cast<int64_t>(in.read<uint16_t>());
    case i16: return static_cast<int64_t>(in.read<int16_t>());
    case u32: return static_cast<int64_t>(in.read<uint32_t>());
    case i32: return static_cast<int64_t>(in.read<int32_t>());
    case f32: return static_cast<double>(in.read<float>());
    case boolean: return in.read<uint8_t>() != 0;
    case text: return in.read_string(kMaxStringBytes);
    case u64: return in.read<uint64_t>();
    case i64: return in.read<int64_t>();
    case f64: return in.read<double>();
    case array: {
      const auto element = in.read<uint32_t>();
      const auto count = in.read<uint64_t>();
      if (element == text) {
        in.check_count(count, 8, "array elements");
        for (uint64_t i = 0; i < count; ++i) {
          const auto length = in.read<uint64_t>();
          in.skip(length);
        }
      } else {
        const uint64_t size = scalar_bytes(element);
        if (size == 0) in.fail("array of type " + std::to_string(element));
        in.check_count(count, size, "array elements");
        in.skip(count * size);
      }
      return GgufFile::ArrayView{element, count};
    }
    default: in.fail("metadata of type " + std::to_string(type));
  }
}

// ggml's numbers for tensor types. The rest (Q2_K, IQ*, ...) is named in the error by its number.
std::optional<WeightFormat> tensor_format(uint32_t type) {
  switch (type) {
    case 0: return WeightFormat::f32;
    case 1: return WeightFormat::f16;
    case 2: return WeightFormat::q4_0;
    case 3: return WeightFormat::q4_1;
    case 6: return WeightFormat::q5_0;
    case 7: return WeightFormat::q5_1;
    case 8: return WeightFormat::q8_0;
    case 12: return WeightFormat::q4_k;
    case 13: return WeightFormat::q5_k;
    case 14: return WeightFormat::q6_k;
    case 30: return WeightFormat::bf16;
    case 39: return WeightFormat::mxfp4;
    default: return std::nullopt;
  }
}

struct Pending {
  Tensor tensor;
  uint64_t offset;
};

Pending read_tensor(Cursor& in) {
  Pending out;
  Tensor& tensor = out.tensor;
  tensor.name = in.read_string(kMaxNameBytes);
  const auto n_dims = in.read<uint32_t>();
  if (n_dims == 0 || n_dims > kMaxDims) in.fail("tensor " + tensor.name + " has " + std::to_string(n_dims) + " dimensions");
  uint64_t elements = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const auto extent = in.read<uint64_t>();
    if (extent == 0 || extent > std::numeric_limits<int32_t>::max() ||
        elements > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / 8 / extent) {
      in.fail("tensor " + tensor.name + " has an impossible shape");
    }
    elements *= extent;
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));  // the file stores the innermost first
  }
  const auto type = in.read<uint32_t>();
  const auto format = tensor_format(type);
  if (!format) throw std::runtime_error("tensor " + tensor.name + " has the unsupported GGUF type " + std::to_string(type));
  tensor.format = *format;
  const FormatLayout layout = format_layout(*format);
  if (tensor.shape.back() % layout.elements != 0) {
    in.fail("tensor " + tensor.name + ": rows of " + std::to_string(tensor.shape.back()) + " do not fill " +
            std::string(format_name(*format)) + " blocks");
  }
  tensor.bytes = static_cast<int64_t>(elements / static_cast<uint64_t>(layout.elements) * static_cast<uint64_t>(layout.bytes));
  out.offset = in.read<uint64_t>();
  return out;
}

}  // namespace

GgufFile::GgufFile(const std::string& path) : file_(std::make_unique<MappedFile>(path)) {
  const std::span<const std::byte> bytes = file_->bytes();
  Cursor in(bytes, path);
  if (bytes.size() < 24 || std::memcmp(bytes.data(), "GGUF", 4) != 0) in.fail("not a GGUF file");
  in.skip(4);
  const auto version = in.read<uint32_t>();
  if (version != 2 && version != 3) in.fail("GGUF version " + std::to_string(version) + ", known are 2 and 3");
  const auto n_tensors = in.read<uint64_t>();
  const auto n_values = in.read<uint64_t>();

  in.check_count(n_values, 8 + 4 + 1, "metadata entries");
  for (uint64_t i = 0; i < n_values; ++i) {
    std::string key = in.read_string(kMaxNameBytes);
    const auto type = in.read<uint32_t>();
    Value value = read_value(in, type);
    if (!metadata_.emplace(key, std::move(value)).second) in.fail("repeated key " + key);
  }

  in.check_count(n_tensors, 8 + 4 + 8 + 4 + 8, "tensors");
  std::vector<Pending> pending;
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < n_tensors; ++i) {
    pending.push_back(read_tensor(in));
    if (!names.insert(pending.back().tensor.name).second) in.fail("repeated tensor " + pending.back().tensor.name);
  }

  const int64_t alignment = integer("general.alignment").value_or(32);
  if (alignment <= 0 || alignment > static_cast<int64_t>(kMaxAlignment) || alignment % 8 != 0) in.fail("bad general.alignment");
  const auto step = static_cast<uint64_t>(alignment);
  const uint64_t data_start = (in.at() + step - 1) / step * step;
  const uint64_t data_size = data_start <= bytes.size() ? bytes.size() - data_start : 0;
  for (Pending& entry : pending) {
    const auto size = static_cast<uint64_t>(entry.tensor.bytes);
    if (entry.offset % step != 0) in.fail("tensor " + entry.tensor.name + " is not aligned");
    if (size > data_size || entry.offset > data_size - size) {
      throw std::runtime_error("bad GGUF file " + path + ": tensor " + entry.tensor.name + " lies outside the file (is it cut off?)");
    }
    entry.tensor.data = bytes.data() + data_start + entry.offset;
    tensors_.push_back(std::move(entry.tensor));
  }
}

const GgufFile::Value* GgufFile::find(std::string_view key) const {
  const auto found = metadata_.find(std::string(key));
  return found == metadata_.end() ? nullptr : &found->second;
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* i = std::get_if<int64_t>(value)) return *i;
  if (const auto* u = std::get_if<uint64_t>(value); u != nullptr && *u <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return static_cast<int64_t>(*u);
  }
  throw std::runtime_error("GGUF key " + std::string(key) + " is not an integer");
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* d = std::get_if<double>(value)) return *d;
  return static_cast<double>(*integer(key));
}

const std::string* GgufFile::string(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return nullptr;
  if (const auto* s = std::get_if<std::string>(value)) return s;
  throw std::runtime_error("GGUF key " + std::string(key) + " is not a string");
}

std::optional<uint64_t> GgufFile::array_count(std::string_view key) const {
  const Value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* a = std::get_if<ArrayView>(value)) return a->count;
  throw std::runtime_error("GGUF key " + std::string(key) + " is not an array");
}

}  // namespace sluice
