// The file readers: what they accept, and what hostile or cut files get.
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "check.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "model/checkpoint.h"
#include "model_support.h"

using namespace sluice;
using namespace sluice::test;

namespace {

// A file that is gone with its test.
class TempFile {
 public:
  TempFile(const std::string& bytes, const std::string& suffix) {
    std::string pattern = (std::filesystem::temp_directory_path() / ("sluice-XXXXXX" + suffix)).string();
    const int fd = ::mkstemps(pattern.data(), static_cast<int>(suffix.size()));
    if (fd < 0) throw std::runtime_error("cannot make a temporary file");
    ::close(fd);
    path = pattern;
    std::ofstream(path, std::ios::binary) << bytes;
  }
  ~TempFile() { std::filesystem::remove(path); }
  std::string path;
};

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string text(const std::string& s) { return raw<uint64_t>(s.size()) + s; }
std::string key_u32(const std::string& key, uint32_t value) { return text(key) + raw<uint32_t>(4) + raw(value); }
std::string key_text(const std::string& key, const std::string& value) { return text(key) + raw<uint32_t>(8) + text(value); }

std::string gguf(const std::vector<std::string>& keys, const std::vector<std::string>& tensors, size_t data_bytes) {
  std::string out = "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(tensors.size()) + raw<uint64_t>(keys.size());
  for (const std::string& key : keys) out += key;
  for (const std::string& tensor : tensors) out += tensor;
  out.resize((out.size() + 31) / 32 * 32);
  return out + std::string(data_bytes, '\1');
}
std::string tensor(const std::string& name, std::vector<uint64_t> shape, uint32_t type, uint64_t offset) {
  std::string out = text(name) + raw<uint32_t>(static_cast<uint32_t>(shape.size()));
  for (const uint64_t n : shape) out += raw(n);
  return out + raw(type) + raw(offset);
}

void refuse_gguf(const std::string& bytes, const char* part) {
  const TempFile file(bytes, ".gguf");
  CHECK_THROWS(GgufFile(file.path), part);
}

std::string safetensors(const std::string& header, size_t data_bytes) {
  return raw<uint64_t>(header.size()) + header + std::string(data_bytes, '\0');
}
void refuse_safetensors(const std::string& bytes, const char* part) {
  const TempFile file(bytes, ".safetensors");
  CHECK_THROWS(SafetensorsFile(file.path), part);
}

}  // namespace

TEST(a_gguf_file_gives_its_metadata_and_tensors) {
  const TempFile file(gguf({key_u32("a.number", 7), key_text("a.text", "hello")},
                           {tensor("w", {32, 3}, 3, 0), tensor("v", {8}, 0, 64)}, 96), ".gguf");
  const GgufFile opened(file.path);
  CHECK_EQ(*opened.integer("a.number"), 7);
  CHECK_EQ(*opened.string("a.text"), "hello");
  CHECK(!opened.integer("a.missing"));
  CHECK_THROWS(opened.integer("a.text"), "not an integer");
  CHECK_EQ(opened.tensors().size(), 2u);
  CHECK(opened.tensors()[0].shape == (std::vector<int64_t>{3, 32}));
  CHECK_EQ(opened.tensors()[0].bytes, 60);
  CHECK(opened.tensors()[0].format == WeightFormat::q4_1);
  CHECK_EQ(static_cast<int>(opened.tensors()[1].data[0]), 1);
}

TEST(a_hostile_gguf_file_is_refused_with_a_reason) {
  refuse_gguf("GGUX" + std::string(60, '\0'), "not a GGUF file");
  refuse_gguf("GGUF", "not a GGUF file");
  refuse_gguf("GGUF" + raw<uint32_t>(9) + std::string(64, '\0'), "version 9");
  refuse_gguf("GGUF" + raw<uint32_t>(3) + raw<uint64_t>(0) + raw<uint64_t>(UINT64_MAX), "impossible number of metadata");
  refuse_gguf("GGUF" + raw<uint32_t>(3) + raw<uint64_t>(UINT64_MAX) + raw<uint64_t>(0), "impossible number of tensors");
  // Lengths that would wrap around when added to an offset.
  refuse_gguf("GGUF" + raw<uint32_t>(3) + raw<uint64_t>(0) + raw<uint64_t>(1) + raw<uint64_t>(UINT64_MAX - 8) + std::string(64, 'x'), "string of");
  refuse_gguf(gguf({text("k") + raw<uint32_t>(9) + raw<uint32_t>(10) + raw<uint64_t>(UINT64_MAX / 4)}, {}, 0), "impossible number of array");
  refuse_gguf(gguf({text("k") + raw<uint32_t>(9) + raw<uint32_t>(9) + raw<uint64_t>(1)}, {}, 64), "array of type 9");
  refuse_gguf(gguf({text("k") + raw<uint32_t>(77)}, {}, 64), "metadata of type 77");
  refuse_gguf(gguf({key_u32("k", 1), key_u32("k", 2)}, {}, 64), "repeated key");
  refuse_gguf(gguf({key_u32("general.alignment", 0)}, {}, 64), "general.alignment");
  refuse_gguf(gguf({}, {tensor("w", {32}, 0, 0), tensor("w", {32}, 0, 0)}, 256), "repeated tensor");
  refuse_gguf(gguf({}, {tensor("w", {32}, 21, 0)}, 256), "tensor w has the unsupported GGUF type 21");
  refuse_gguf(gguf({}, {tensor("w", {33}, 3, 0)}, 256), "do not fill Q4_1 blocks");
  refuse_gguf(gguf({}, {tensor("w", {32, 0}, 0, 0)}, 256), "impossible shape");
  refuse_gguf(gguf({}, {tensor("w", {1u << 31, 1u << 31, 1u << 31}, 0, 0)}, 256), "impossible shape");
  refuse_gguf(gguf({}, {tensor("w", {32, 3}, 0, 0)}, 383), "outside the file");
  refuse_gguf(gguf({}, {tensor("w", {8}, 0, UINT64_MAX - 31)}, 256), "outside the file");
  refuse_gguf(gguf({}, {tensor("w", {8}, 0, 4)}, 256), "not aligned");
}

TEST(every_cut_of_a_real_gguf_header_is_refused) {
  const std::string whole = gguf({key_u32("a", 7), key_text("b", "hello")}, {tensor("w", {32, 3}, 3, 0)}, 64);
  for (size_t n = 1; n < whole.size() - 4; ++n) {
    const TempFile file(whole.substr(0, n), ".gguf");
    CHECK_THROWS(GgufFile(file.path), "");
  }
}

TEST(a_hostile_safetensors_file_is_refused_with_a_reason) {
  refuse_safetensors("abc", "shorter");
  refuse_safetensors(raw<uint64_t>(UINT64_MAX) + "{}", "impossible header length");
  refuse_safetensors(raw<uint64_t>(100) + "{}", "impossible header length");
  refuse_safetensors(safetensors("[]", 0), "no object");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}", 8), "invalid JSON");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8), "lacks dtype, shape or data_offsets");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8), "unsupported safetensors type I64");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7), "outside the file");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8), "outside the file");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8), "do not fit its shape");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[2147483647,2147483647,2147483647],\"data_offsets\":[0,8]}}", 8), "impossible shape");
  refuse_safetensors(safetensors("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8), "repeated key");
  refuse_safetensors(safetensors("{\"w\":" + std::string(1000, '['), 0), "nested too deeply");
}

TEST(json_is_read_strictly) {
  const json::Value value = json::parse(R"( {"a": [1, -2.5e1, true, null, "x\u00e9\ud83d\ude00\n"], "b": {}} )");
  CHECK_EQ(*(*value.find("a")->array())[0].integer(), 1);
  double number = 0;
  CHECK((*value.find("a")->array())[1].number(number) && number == -25);
  CHECK_EQ(*(*value.find("a")->array())[4].string(), "x\xc3\xa9\xf0\x9f\x98\x80\n");
  CHECK(value.find("c") == nullptr);
  for (const char* bad : {"", "{", "[1,]", "{\"a\":1,}", "01", "1.", "nul", "\"\\x\"", "\"\\ud800\"", "[1] 2", "\"a\nb\"", "{\"a\" 1}", "{1:2}", "-", "1e999"}) {
    CHECK_THROWS(json::parse(bad), "invalid JSON");
  }
}

TEST(every_block_format_decodes_as_the_gguf_package_says) {
  const json::Value index = json::parse(read_file(goldens("blocks/index.json")));
  const std::string blocks = read_file(goldens("blocks/blocks.bin"));
  const std::vector<float> wanted = read_floats(goldens("blocks/values.f32"));
  size_t at = 0, value_at = 0;
  for (const json::Value& entry : *index.array()) {
    const std::string& name = *entry.find("format")->string();
    const auto n = static_cast<size_t>(*entry.find("values")->integer());
    for (int f = 0; f <= static_cast<int>(WeightFormat::q6_k); ++f) {
      if (format_name(static_cast<WeightFormat>(f)) != name) continue;
      std::vector<float> values(n);
      dequantize(static_cast<WeightFormat>(f), reinterpret_cast<const std::byte*>(blocks.data()) + at, static_cast<int64_t>(n), values.data());
      int different = 0;
      for (size_t i = 0; i < n; ++i) different += values[i] != wanted[value_at + i];
      CHECK_EQ(different, 0);
    }
    at += static_cast<size_t>(*entry.find("bytes")->integer());
    value_at += n;
  }
  CHECK_EQ(at, blocks.size());
}

TEST(a_model_that_cannot_be_computed_right_is_refused) {
  const auto load = [](const std::string& path) {
    LoadOptions options;
    options.path = path;
    return load_model(options);
  };
  CHECK_THROWS(load("/nonexistent/model.gguf"), "no model at /nonexistent/model.gguf");
  const TempFile unknown(gguf({key_text("general.architecture", "mamba")}, {}, 0), ".gguf");
  CHECK_THROWS(load(unknown.path), "unknown model architecture \"mamba\"");
  const TempFile bare(gguf({key_text("general.architecture", "llama")}, {}, 0), ".gguf");
  CHECK_THROWS(load(bare.path), "llama.embedding_length is missing");

  // A copy of a good model, one thing changed at a time.
  const std::string folder = (std::filesystem::temp_directory_path() / ("sluice-model-" + std::to_string(::getpid()))).string();
  const auto with = [&](const std::string& from, const std::string& to, const char* reason) {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directory(folder);
    std::string config = read_file(goldens("llama-gqa-tied/config.json"));
    const size_t at = config.find(from);
    CHECK(at != std::string::npos);
    config.replace(at, from.size(), to);
    std::ofstream(folder + "/config.json") << config;
    std::filesystem::copy(goldens("llama-gqa-tied/model.safetensors"), folder + "/model.safetensors");
    CHECK_THROWS(load(folder), reason);
    std::filesystem::remove_all(folder);
  };
  with("\"LlamaForCausalLM\"", "\"GPT2LMHeadModel\"", "unknown model architecture");
  with("\"hidden_size\": 32", "\"hidden_size\": 48", "has shape");
  with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "tensor model.layers.2.input_layernorm.weight is missing");
  with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "has no place in architecture");
  with("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "tensor lm_head.weight is missing");
  with("\"rope_type\": \"default\"", "\"rope_type\": \"dynamic\"", "rope type \"dynamic\" is not built");
  with("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "only hidden_act");
  with("\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "no multiple of kv heads");
  with("\"vocab_size\": 93", "\"vocab_size\": -1", "no sensible integer");
  with("\"eos_token_id\": 2", "\"eos_token_id\": 93", "outside the vocabulary");
}
