// What the kernel says about this machine and its processes. Linux's /proc.
#ifndef SWITCHYARD_WORKER_AGENT_HOST_STATS_H_
#define SWITCHYARD_WORKER_AGENT_HOST_STATS_H_

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

struct HostMemory {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;
};
// Zeros when /proc is not readable.
HostMemory ReadHostMemory();

struct ProcessUsage {
  double cpu_seconds = 0;  // user and system, this process only
  int64_t resident_bytes = 0;
};
// Zeros for a process that is gone.
ProcessUsage ReadProcessUsage(pid_t pid);

// What the process does now, for people: "is in state R", "is in state S, waits in
// futex_wait_queue", "is gone".
std::string DescribeProcess(pid_t pid);

// Processes that the kernel has killed for lack of memory since boot, in any memory group; -1:
// unknown. `vmstat` is the text of /proc/vmstat.
int64_t ParseOomKills(absl::string_view vmstat);
int64_t ReadOomKills();

// Random, new with every boot; empty when unknown.
std::string ReadBootId();

// The same over all boots of the machine (/etc/machine-id); empty when it has none.
std::string ReadMachineId();

// A TCP port of `address` (a literal IPv4 or IPv6 address) that is free now.
// Errors: InvalidArgument for another address, Unavailable.
absl::StatusOr<int> FindFreePort(const std::string& address);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_AGENT_HOST_STATS_H_
