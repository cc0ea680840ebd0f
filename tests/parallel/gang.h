// The real switchyard-trainer as processes, one per rank, as an agent would start them.
#ifndef SWITCHYARD_TESTS_PARALLEL_GANG_H_
#define SWITCHYARD_TESTS_PARALLEL_GANG_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tests/parallel/tiny_job.h"
#include "worker/link/messages.h"

namespace switchyard {

// A port of the loopback interface that was free just now.
int FreePort();

// One trainer; killed at the end of the test if it is still there.
class Process {
 public:
  // `link`: handed to the child as descriptor 3. Output goes to `output`.
  Process(std::vector<std::string> args, const std::string& output, UniqueFd link = UniqueFd());
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Signal(int signal);
  // Exit code, or 128 + signal. Blocks; the test has a time limit of its own.
  int Wait();

 private:
  pid_t pid_ = -1;
};

// Runs of jobs over one set of tiny data, each in its own folder.
class GangFolder {
 public:
  explicit GangFolder(bool for_kernels = false);

  TinyJob Job(const std::string& name, Gang gang = {}) const;
  std::string Output(const TinyJob& job, int rank) const;
  std::unique_ptr<Process> Start(const TinyJob& job, int rank) const;
  std::unique_ptr<Process> Start(const TinyJob& job, int rank, const ConfigFrame& frame) const;
  // Runs all ranks; their exit codes.
  std::vector<int> Run(const TinyJob& job) const;
  // What a rank has written.
  std::vector<RankFrame> Frames(const TinyJob& job, int rank) const;
  RunReport Report(const TinyJob& job) const;  // of rank 0
  // The last frame of a rank that failed.
  ErrorFrame Error(const TinyJob& job, int rank) const;
  const std::string& path() const { return folder_.path(); }

 private:
  TempFolder folder_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_PARALLEL_GANG_H_
