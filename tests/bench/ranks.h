// Starts the ranks of a benchmark: one process per GPU, or threads of this process that share GPUs.
#ifndef SWITCHYARD_TESTS_BENCH_RANKS_H_
#define SWITCHYARD_TESTS_BENCH_RANKS_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "worker/trainer/parallel/comms.h"
#include "worker/trainer/parallel/in_process_comm.h"
#include "worker/trainer/parallel/mesh.h"

namespace switchyard::bench {

// One rank, as its body sees it. All ranks form one ep group.
struct Rank {
  Mesh mesh;
  at::Device device = at::kCPU;  // current in the body
  const Comms& comms;
  InProcessWorld* in_process = nullptr;  // null: a process of its own

  int rank() const { return mesh.rank; }
  int world() const { return mesh.world_size; }
  bool first() const { return mesh.rank == 0; }
  // The largest of the ranks' values; collective.
  double Slowest(double value) const;
  double Sum(double value) const;
  bool All(bool value) const;
};

struct RanksOptions {
  int world = 1;
  bool in_process = false;
  bool cpu = false;                            // else rank r has GPU r modulo their number
  int64_t num_experts = 0;                     // that the ranks divide among them
  absl::Duration timeout = absl::Seconds(60);  // of meeting and of every collective
  int kill_rank = -1;  // processes only: the rank that is expected to be killed
};

// Runs `body` on every rank and returns the exit code: 0 when all bodies returned true, else 1.
// When one fails the others are ended; what was thrown is printed with the rank's number. With
// kill_rank the code is 0 when that rank was killed and every other one threw an error; how long
// each took is printed. Call it before anything has touched a GPU or started a thread: ranks are
// forked.
int RunRanks(const RanksOptions& options, const std::function<bool(const Rank&)>& body);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_RANKS_H_
