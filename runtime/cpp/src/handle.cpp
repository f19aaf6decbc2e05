#include "handle.h"

#include <utility>

#include "error.h"

namespace tfanet {

Gate::Pass::Pass(Gate& gate) : gate_(gate) {
  const std::lock_guard<std::mutex> lock(gate_.mutex_);
  closed_ = gate_.closed_;
  ++gate_.inside_;
}

void Gate::Pass::require_open() const {
  if (closed_) fail(TFANET_CLOSED, "the runtime is being closed: call nothing on it any more");
}

Gate::Pass::~Pass() {
  const std::lock_guard<std::mutex> lock(gate_.mutex_);
  if (--gate_.inside_ == 0) gate_.left_.notify_all();
}

void Gate::close() {
  std::unique_lock<std::mutex> lock(mutex_);
  closed_ = true;
  left_.wait(lock, [&] { return inside_ == 0; });
}

void ErrorLog::set(const char* message) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  try {
    messages_[std::this_thread::get_id()] = message;
  } catch (...) {
    const auto last = messages_.find(std::this_thread::get_id());
    if (last != messages_.end()) last->second.clear();
    lost_ = true;
  }
}

const char* ErrorLog::get() const noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = messages_.find(std::this_thread::get_id());
  if (found != messages_.end() && !found->second.empty()) return found->second.c_str();
  return lost_ ? kNoMemory : "no call of this thread has failed";
}

void Worker::add(Job job) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (jobs_.size() >= kMaxWaiting) {
    fail(TFANET_BUSY, kMaxWaiting, " predictions wait already: try again when one is done");
  }
  jobs_.push_back(std::move(job));
  try {
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
  } catch (...) {
    jobs_.pop_back();
    throw;
  }
  changed_.notify_one();
}

void Worker::finish() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

bool Worker::is_this_thread() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return thread_.get_id() == std::this_thread::get_id();
}

void Worker::loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return finished_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    {
      const Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }
    lock.lock();
  }
}

}  // namespace tfanet
