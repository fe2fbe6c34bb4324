#include "io/safetensors.h"

#include <cstring>
#include <limits>
#include <stdexcept>

#include "base/json.h"

namespace sluice {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100u << 20;  // the limit of the reference implementation

WeightFormat format_of(const std::string& dtype, const std::string& name) {
  if (dtype == "F32") return WeightFormat::f32;
  if (dtype == "F16") return WeightFormat::f16;
  if (dtype == "BF16") return WeightFormat::bf16;
  if (dtype == "F8_E4M3") return WeightFormat::fp8_e4m3;
  if (dtype == "I8") return WeightFormat::int8;
  if (dtype == "U8") return WeightFormat::u8;
  throw std::runtime_error("tensor " + name + " has the unsupported safetensors type " + dtype);
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(std::make_unique<MappedFile>(path)) {
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error("bad safetensors file " + path + ": " + what);
  };
  const std::span<const std::byte> bytes = file_->bytes();
  if (bytes.size() < 8) fail("shorter than its own length field");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8) fail("impossible header length");
  const json::Value header =
      json::parse({reinterpret_cast<const char*>(bytes.data()) + 8, static_cast<size_t>(header_bytes)});
  const json::Object* entries = header.object();
  if (entries == nullptr) fail("the header is no object");
  const std::span<const std::byte> data = bytes.subspan(8 + header_bytes);

  for (const auto& [name, entry] : *entries) {
    if (name == "__metadata__") continue;
    const json::Value* dtype = entry.find("dtype");
    const json::Value* shape = entry.find("shape");
    const json::Value* offsets = entry.find("data_offsets");
    if (dtype == nullptr || dtype->string() == nullptr || shape == nullptr || shape->array() == nullptr ||
        offsets == nullptr || offsets->array() == nullptr || offsets->array()->size() != 2) {
      fail("tensor " + name + " lacks dtype, shape or data_offsets");
    }
    Tensor tensor;
    tensor.name = name;
    tensor.format = format_of(*dtype->string(), name);
    uint64_t size = static_cast<uint64_t>(format_layout(tensor.format).bytes);
    for (const json::Value& extent : *shape->array()) {
      const int64_t* n = extent.integer();
      if (n == nullptr || *n <= 0 || *n > std::numeric_limits<int32_t>::max() ||
          size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / static_cast<uint64_t>(*n)) {
        fail("tensor " + name + " has an impossible shape");
      }
      size *= static_cast<uint64_t>(*n);
      tensor.shape.push_back(*n);
    }
    const int64_t* begin = (*offsets->array())[0].integer();
    const int64_t* end = (*offsets->array())[1].integer();
    if (begin == nullptr || end == nullptr || *begin < 0 || *end < *begin ||
        static_cast<uint64_t>(*end) > data.size()) {
      fail("tensor " + name + " lies outside the file (is it cut off?)");
    }
    if (static_cast<uint64_t>(*end - *begin) != size) fail("tensor " + name + ": its bytes do not fit its shape");
    tensor.data = data.data() + *begin;
    tensor.bytes = static_cast<int64_t>(size);
    tensors_.push_back(std::move(tensor));
  }
}

}  // namespace sluice
