#include "grammar/envelope.h"

#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

namespace sluice::grammar {
namespace {

static_assert(std::endian::native == std::endian::little, "the envelope is written in host order");

struct Header {
  std::array<char, 8> magic;
  uint32_t envelope_version;
  uint32_t zero;
  uint64_t fingerprint;
  std::array<char, 16> compiler_version;
  uint64_t payload_bytes;
};
static_assert(sizeof(Header) == 48);

constexpr std::array<char, 8> kMagic = {'S', 'L', 'U', 'I', 'C', 'E', 'X', 'G'};
constexpr uint32_t kEnvelopeVersion = 1;

struct Fnv1a {
  uint64_t value = 0xcbf29ce484222325ULL;
  void bytes(const void* data, size_t size) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < size; ++i) value = (value ^ p[i]) * 0x100000001b3ULL;
  }
  void number(uint64_t n) { bytes(&n, sizeof n); }
};

std::array<char, 16> version_field() {
  std::array<char, 16> field{};
  std::memcpy(field.data(), kXGrammarVersion.data(), kXGrammarVersion.size());
  return field;
}

}  // namespace

uint64_t vocabulary_fingerprint(const Vocabulary& vocabulary) {
  Fnv1a hash;
  hash.number(vocabulary.tokens.size());
  for (const std::string& token : vocabulary.tokens) {
    hash.number(token.size());
    hash.bytes(token.data(), token.size());
  }
  hash.number(vocabulary.stop_ids.size());
  for (int32_t id : vocabulary.stop_ids) hash.number(static_cast<uint64_t>(id));
  return hash.value;
}

std::string seal_envelope(uint64_t fingerprint, std::string_view payload) {
  const Header header{kMagic, kEnvelopeVersion, 0, fingerprint, version_field(), payload.size()};
  std::string out;
  out.reserve(sizeof header + payload.size());
  out.append(reinterpret_cast<const char*>(&header), sizeof header);
  out.append(payload);
  return out;
}

std::string_view open_envelope(std::span<const std::byte> bytes, uint64_t fingerprint) {
  Header header;
  if (bytes.size() < sizeof header) throw std::runtime_error("grammar artifact: too short");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kMagic) throw std::runtime_error("grammar artifact: not an XGrammar artifact");
  if (header.envelope_version != kEnvelopeVersion || header.zero != 0) {
    throw std::runtime_error("grammar artifact: unknown envelope version");
  }
  if (header.compiler_version != version_field()) {
    throw std::runtime_error("grammar artifact: compiled by another XGrammar version than " + std::string(kXGrammarVersion));
  }
  if (header.fingerprint != fingerprint) throw std::runtime_error("grammar artifact: compiled for another vocabulary");
  if (header.payload_bytes != bytes.size() - sizeof header) throw std::runtime_error("grammar artifact: truncated");
  return {reinterpret_cast<const char*>(bytes.data()) + sizeof header, header.payload_bytes};
}

}  // namespace sluice::grammar
