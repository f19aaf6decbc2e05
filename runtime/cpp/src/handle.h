// What stands behind the handles of tfanet.h: calls in progress, their errors, and the thread that
// runs predictions for callbacks.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "predictor.h"
#include "tfanet.h"

namespace tfanet {

// Lets calls in until it is closed, and knows when the last one has left.
class Gate {
 public:
  // Held during a call; one that comes too late is counted too, until it has said so.
  class Pass {
   public:
    explicit Pass(Gate& gate);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    void require_open() const;  // throws CLOSED

   private:
    Gate& gate_;
    bool closed_;
  };
  void close();  // returns when nobody is inside

 private:
  std::mutex mutex_;
  std::condition_variable left_;
  size_t inside_ = 0;
  bool closed_ = false;
};

// The last message of each thread.
class ErrorLog {
 public:
  void set(const char* message) noexcept;
  const char* get() const noexcept;

 private:
  mutable std::mutex mutex_;
  std::map<std::thread::id, std::string> messages_;
  bool lost_ = false;  // there was no memory for one
};

// Runs jobs one by one, in order. Its thread starts with the first job.
class Worker {
 public:
  static constexpr size_t kMaxWaiting = 64;
  using Job = std::function<void()>;  // must not throw

  ~Worker() { finish(); }
  void add(Job job);  // throws BUSY
  void finish();      // returns when all jobs are done
  bool is_this_thread() const;

 private:
  void loop();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::thread thread_;
  bool finished_ = false;
};

}  // namespace tfanet

struct tfanet_runtime {
  std::unique_ptr<tfanet::Predictor> predictor;  // null where it did not open
  tfanet::Gate gate;
  tfanet::ErrorLog errors;
  tfanet::Worker worker;
};

struct tfanet_sentence {
  tfanet::SharedSentence sentence;
};

struct tfanet_prediction {
  tfanet::Prediction prediction;
};
