// switchyard-shim: starts the ranks of one attempt on one node and outlives the agent that asked
// for it. It starts nothing else, decides nothing, and speaks to agents by files (attempt_files.h).
//
//   * each rank is a session of its own inside the attempt's cgroup, killed by the kernel when the
//     shim dies (PR_SET_PDEATHSIG);
//   * output and frames go to files, exits to the mapped status, synced;
//   * past the lease's deadline everything is killed, agent or no agent;
//   * when the last rank has ended, what is left of the attempt is killed, and then the shim ends.
#ifndef SWITCHYARD_WORKER_SHIM_SHIM_H_
#define SWITCHYARD_WORKER_SHIM_SHIM_H_

#include <string>

namespace switchyard {

// Runs the attempt of `folder` to its end; its exit status. One thread. kReadyFd is open.
int RunShim(const std::string& folder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_SHIM_SHIM_H_
