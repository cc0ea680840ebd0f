// How a process ended.
#ifndef SWITCHYARD_WORKER_AGENT_EXIT_STATUS_H_
#define SWITCHYARD_WORKER_AGENT_EXIT_STATUS_H_

#include <string>

namespace switchyard {

// Exactly one of the two is meaningful.
struct ExitStatus {
  int code = 0;    // when signal is 0
  int signal = 0;  // when not 0
  // "exit code 7", "signal 9 (Killed)".
  std::string ToString() const;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_EXIT_STATUS_H_
