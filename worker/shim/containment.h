// All processes of one attempt as one thing that can be killed, whatever they have forked: a cgroup
// (v2); where none can be made, the processes whose environment carries the attempt's scope
// ("degraded": one that cleared its environment escapes). Standard library only.
#ifndef SWITCHYARD_WORKER_SHIM_CONTAINMENT_H_
#define SWITCHYARD_WORKER_SHIM_CONTAINMENT_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace switchyard {

struct Containment {
  std::string scope;
  std::string cgroup;  // empty: degraded
};

// Makes the cgroup `name` below this process's own. Empty: not possible here; `*why` says why.
std::string MakeCgroup(const std::string& name, std::string* why);
// Once it is empty. An error has no consequence but an empty folder left behind.
void RemoveCgroup(const std::string& cgroup);

// SIGKILL to all of it. Processes may be seen for a moment longer.
void KillAll(const Containment& containment);
// No process of it is left but zombies. False too when this process lacks the descriptors to look.
bool IsEmpty(const Containment& containment);
// Of its live processes; in degraded mode without those that have another user's environment.
std::vector<pid_t> Members(const Containment& containment);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_SHIM_CONTAINMENT_H_
