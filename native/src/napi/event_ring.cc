#include "napi/event_ring.h"

#include <cstring>
#include <stdexcept>
#include <utility>

namespace sluice {
namespace {

void check(napi_status status, const char* what) {
  if (status != napi_ok) throw std::runtime_error(std::string("Node-API failed to ") + what);
}

}  // namespace

EventRing::EventRing(napi_env env, napi_value on_words) : env_(env) {
  napi_value name;
  check(napi_create_string_utf8(env, "sluice engine events", NAPI_AUTO_LENGTH, &name), "make a string");
  check(napi_create_reference(env, on_words, 1, &callback_), "keep the callback");
  check(napi_create_threadsafe_function(env, nullptr, nullptr, name, /*max_queue_size=*/1, /*initial_thread_count=*/1,
                                        nullptr, nullptr, this, on_call, &call_),
        "make a thread-safe function");
  unref();
}

void EventRing::push(std::span<const uint32_t> words) {
  const std::lock_guard lock(mutex_);
  words_.insert(words_.end(), words.begin(), words.end());
  if (pending_ || call_ == nullptr) return;
  pending_ = napi_call_threadsafe_function(call_, nullptr, napi_tsfn_nonblocking) == napi_ok;
}

void EventRing::ref() {
  if (call_ != nullptr) napi_ref_threadsafe_function(env_, call_);
}

void EventRing::unref() {
  if (call_ != nullptr) napi_unref_threadsafe_function(env_, call_);
}

void EventRing::on_call(napi_env env, napi_value, void* context, void*) {
  // Without an environment the process is shutting down: nobody is left to tell.
  if (env != nullptr) static_cast<EventRing*>(context)->deliver();
}

void EventRing::deliver() {
  std::vector<uint32_t> words;
  {
    const std::lock_guard lock(mutex_);
    std::swap(words, words_);
    pending_ = false;
  }
  if (words.empty() || callback_ == nullptr) return;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env_, &scope) != napi_ok) return;
  void* data = nullptr;
  napi_value buffer, array, callback, undefined;
  // A copy, since some hosts forbid array buffers over foreign memory; a step's events are a few hundred bytes.
  // A callback that throws leaves its exception pending; Node reports it as uncaught when this function returns.
  if (napi_create_arraybuffer(env_, words.size() * sizeof(uint32_t), &data, &buffer) == napi_ok) {
    std::memcpy(data, words.data(), words.size() * sizeof(uint32_t));
    if (napi_create_typedarray(env_, napi_uint32_array, words.size(), buffer, 0, &array) == napi_ok &&
        napi_get_reference_value(env_, callback_, &callback) == napi_ok &&
        napi_get_undefined(env_, &undefined) == napi_ok)
      napi_call_function(env_, undefined, callback, 1, &array, nullptr);
  }
  napi_close_handle_scope(env_, scope);
}

void EventRing::close() {
  napi_threadsafe_function call = nullptr;
  {
    const std::lock_guard lock(mutex_);
    std::swap(call, call_);
  }
  if (call != nullptr) napi_release_threadsafe_function(call, napi_tsfn_abort);
  if (callback_ != nullptr) napi_delete_reference(env_, callback_);
  callback_ = nullptr;
}

}  // namespace sluice
