// Between JavaScript values and the engine's structs.
#pragma once

#include <napi.h>

#include "sluice/engine.h"

namespace sluice {

struct CreateOptions {
  LoadOptions load;
  EngineOptions engine;
  grammar::Vocabulary vocabulary;
};

// Throw Napi::TypeError with the name of the field.
CreateOptions create_options_from(const Napi::Object& options);
Request request_from(const Napi::Object& request);

Napi::Object stats_to(Napi::Env env, const EngineStats& stats);
Napi::Object info_to(Napi::Env env, const ModelInfo& model, const EngineOptions& options);
Napi::Object delta_to(Napi::Env env, const KvDelta& delta);

}  // namespace sluice
