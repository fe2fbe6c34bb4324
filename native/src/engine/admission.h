// What may be submitted at all: pure checks of a request against the model and the engine's size.
#pragma once

#include "sluice/engine.h"

namespace sluice {

// refusal == none when the request is fine. Does not look at load or grammars.
SubmitResult check_request(const Request& request, const ModelInfo& model, const EngineOptions& options);

}  // namespace sluice
