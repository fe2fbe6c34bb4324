// Events on their way from the engine thread to JavaScript: appended under a lock, drained whole, with at most one call
// into JavaScript pending however many steps went by.
#pragma once

#include <node_api.h>

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

namespace sluice {

class EventRing {
 public:
  // `on_words(Uint32Array)` is called on the JavaScript thread. The ring does not keep the process alive until ref().
  EventRing(napi_env env, napi_value on_words);
  EventRing(const EventRing&) = delete;
  EventRing& operator=(const EventRing&) = delete;

  // Any thread.
  void push(std::span<const uint32_t> words);

  // JavaScript thread.
  void ref();
  void unref();
  // Hands over what is there now.
  void deliver();
  // No call follows. The thread that pushes must have ended.
  void close();

 private:
  static void on_call(napi_env env, napi_value callback, void* context, void* data);

  napi_env env_;
  napi_threadsafe_function call_ = nullptr;
  napi_ref callback_ = nullptr;
  std::mutex mutex_;
  std::vector<uint32_t> words_;
  bool pending_ = false;
};

}  // namespace sluice
