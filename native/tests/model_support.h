// Drives a Model the way the scheduler does, for tests: rows with their own blocks, steps made of any pieces.
#pragma once

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/model.h"

namespace sluice::test {

inline std::string goldens(const std::string& name) { return std::string(SLUICE_TEST_GOLDENS) + "/" + name; }

// SLUICE_TEST_MODEL, else the place where `npm test` puts it. A missing file makes the test fail, not pass by silence.
inline std::string smollm2_path() {
  const char* named = std::getenv("SLUICE_TEST_MODEL");
  return named != nullptr && *named != '\0' ? named : SLUICE_TEST_DEFAULT_MODEL;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline std::vector<float> read_floats(const std::string& path) {
  const std::string bytes = read_file(path);
  std::vector<float> out(bytes.size() / 4);
  std::memcpy(out.data(), bytes.data(), out.size() * 4);
  return out;
}

inline std::vector<Token> tokens_of(const json::Value& value) {
  std::vector<Token> out;
  for (const json::Value& id : *value.array()) out.push_back(static_cast<Token>(*id.integer()));
  return out;
}

inline Token argmax(const float* logits, int vocab) {
  Token best = 0;
  for (Token i = 1; i < vocab; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

// A model with `rows` rows of `context` tokens each.
class Session {
 public:
  Session(const std::string& path, Precision precision, int threads, int rows, int context, int max_step = 512,
          int max_logits = 512)
      : rows_(rows), blocks_per_row_((context + kBlockTokens - 1) / kBlockTokens) {
    LoadOptions options;
    options.path = path;
    options.precision = precision;
    options.threads = threads;
    model = load_model(options);
    model->reserve(rows * blocks_per_row_, rows, max_step, max_logits);
    // Rows' blocks interleave, so that a wrong block address cannot go unnoticed.
    // Groups have tables of their own: a layer that reads another group's blocks must not go unnoticed either.
    const int n_blocks = rows * blocks_per_row_;
    for (size_t g = 0; g < model->info().kv_groups.size(); ++g) {
      auto& table = tables_.emplace_back();
      for (int row = 0; row < rows; ++row) {
        for (int b = 0; b < blocks_per_row_; ++b) table.push_back((b * rows + row + 3 * static_cast<int>(g)) % n_blocks);
      }
    }
    lengths.assign(static_cast<size_t>(rows), 0);
  }

  int vocab() const { return model->info().vocab_size; }

  struct Piece {
    int row;
    std::vector<Token> tokens;
    int n_logits;
  };
  // One step; the logits of all pieces, in their order.
  std::vector<float> step(const std::vector<Piece>& pieces) {
    std::vector<RowWork> rows;
    std::vector<Token> tokens;
    int n_logits = 0;
    for (const Piece& piece : pieces) {
      int& length = lengths[static_cast<size_t>(piece.row)];
      rows.push_back({piece.row, length, static_cast<int32_t>(piece.tokens.size()), piece.n_logits});
      tokens.insert(tokens.end(), piece.tokens.begin(), piece.tokens.end());
      length += static_cast<int>(piece.tokens.size());
      n_logits += piece.n_logits;
    }
    std::vector<float> logits(static_cast<size_t>(n_logits) * static_cast<size_t>(vocab()));
    std::vector<BlockTables::Group> groups;
    for (const auto& table : tables_) groups.push_back({table.data(), blocks_per_row_});
    model->forward({rows, tokens, n_logits}, {groups}, logits);
    return logits;
  }

  std::vector<Token> greedy(int row, const std::vector<Token>& prompt, int n) {
    std::vector<Token> out;
    std::vector<Token> next = prompt;
    for (int i = 0; i < n; ++i) {
      next = {argmax(step({{row, next, 1}}).data(), vocab())};
      out.push_back(next[0]);
    }
    return out;
  }

  std::unique_ptr<Model> model;
  std::vector<int> lengths;  // tokens in each row's cache; set back to rewind

 private:
  int rows_;
  int blocks_per_row_;
  std::vector<std::vector<int32_t>> tables_;  // by KV group
};

}  // namespace sluice::test
