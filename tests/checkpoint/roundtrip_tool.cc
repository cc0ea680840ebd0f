// Drives the checkpoint code from Python tests.
//
//   roundtrip_tool check FILE             prints "ok" or the error's name; exit 0
//   roundtrip_tool rewrite IN OUT         lays the tensors of IN out again and writes OUT
//   roundtrip_tool model IN OUT [--ranks N] [--replicas N] [--ep N] [--dtype float32|bfloat16]
//                  [--max-shard-bytes N] [--resume]
//       Loads model folder IN on a gang of threads and saves it to OUT with optimizer state, whose
//       moments are functions of the weights. --resume: IN is a checkpoint of ours, whose state is
//       loaded instead. Prints "ok", or the error of the first failing rank on stderr and exits 1.
#include <ATen/ATen.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/checkpoint/reader.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/checkpoint/writer.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/parallel/fsdp.h"
#include "worker/trainer/parallel/in_process_comm.h"

namespace switchyard {
namespace {

void Check(const std::string& path) {
  const auto file = SafetensorsFile::Open(path);
  if (file.ok()) {
    std::cout << "ok\n";
    return;
  }
  // "<path>: <name>: <detail>"
  const std::string message(file.status().message());
  const std::vector<std::string> parts = absl::StrSplit(message.substr(path.size() + 2), ':');
  std::cout << parts[0] << "\n";
}

void Rewrite(const std::string& in, const std::string& out) {
  const auto file = OrThrow(SafetensorsFile::Open(in));
  std::vector<TensorSpec> specs(file->header().tensors.begin(), file->header().tensors.end());
  std::reverse(specs.begin(), specs.end());  // any order must give the same file
  const SafetensorsLayout layout = OrThrow(LayOutSafetensors(specs, file->header().metadata));
  std::string bytes = layout.head;
  for (const TensorInfo& tensor : layout.tensors) {
    const absl::string_view data = file->Bytes(*file->Find(tensor.name));
    bytes.append(data.data(), data.size());
  }
  OrThrow(ReplaceFile(out, bytes));
}

struct Options {
  int64_t ranks = 1;
  int64_t replicas = 1;
  int64_t ep = 1;
  std::string dtype = "float32";
  int64_t max_shard_bytes = 5'000'000'000;
  bool resume = false;
};

std::vector<BucketShard> MakeShards(const ModelConfig& config, const Mesh& mesh, bool bf16) {
  const int64_t per_rank = config.num_experts / mesh.ep_size;
  std::vector<BucketShard> shards;
  for (BucketLayout& layout :
       BuildBuckets(config, mesh.ep_rank() * per_rank, (mesh.ep_rank() + 1) * per_rank)) {
    const Axis axis = layout.kind == BucketKind::kDense ? Axis::kDpShard : Axis::kExpertShard;
    const ShardRange range = ShardOf(layout.numel, mesh.AxisSize(axis), mesh.AxisRank(axis));
    BucketShard shard;
    shard.layout = std::move(layout);
    shard.begin = range.begin;
    shard.end = range.end;
    shard.weights = at::zeros({range.numel()}, bf16 ? at::kBFloat16 : at::kFloat);
    if (bf16) shard.remainder = at::zeros({range.numel()}, at::kShort);
    shard.exp_avg = at::zeros({range.numel()}, at::kFloat);
    shard.exp_avg_sq = at::zeros({range.numel()}, at::kFloat);
    shard.writer = mesh.AxisRank(Axis::kDpReplicate) == 0;
    shards.push_back(std::move(shard));
  }
  return shards;
}

void RunModel(const std::string& in, const std::string& out, const Options& options) {
  const ModelConfig config = OrThrow(ReadModelConfig(in));
  const std::vector<BucketLayout> model = BuildBuckets(config, 0, config.num_experts);
  const bool bf16 = options.dtype == "bfloat16";
  CheckpointFormat format;
  format.weight_dtype = bf16 ? TensorDtype::kBf16 : TensorDtype::kF32;
  format.max_shard_bytes = options.max_shard_bytes;
  format.save_optimizer = true;
  const int ranks = static_cast<int>(options.ranks);
  RunInProcess(ranks, absl::Seconds(60), [&](int rank, InProcessWorld& world) {
    const Mesh mesh = OrThrow(MakeMesh(ranks, rank, static_cast<int>(options.replicas),
                                       static_cast<int>(options.ep), config.num_experts));
    const Comms comms = world.MakeComms(mesh);
    Comm& gang = comms[Axis::kWorld];
    const std::vector<BucketShard> shards = MakeShards(config, mesh, bf16);
    WeightSource source;
    SaveRequest request;
    if (options.resume) {
      LoadedCheckpoint loaded = LoadCheckpoint(in, model, shards, gang);
      source = std::move(loaded.source);
      request.state = std::move(loaded.state);
    } else {
      source = LoadWeights(in, model, shards, gang);
      for (const BucketShard& shard : shards) {
        at::Tensor exp_avg = shard.exp_avg, exp_avg_sq = shard.exp_avg_sq;
        exp_avg.copy_(shard.weights.to(at::kFloat) * 0.3);
        exp_avg_sq.copy_(shard.weights.to(at::kFloat).square());
      }
    }
    request.folder = out;
    request.source_folder = in;
    request.manifest.world_size = ranks;
    request.manifest.ep_size = options.ep;
    SaveCheckpoint(request, OrThrow(PlanCheckpoint(model, &source, format)), shards, gang);
  });
}

Options ParseOptions(const std::vector<std::string>& args, size_t first) {
  Options options;
  const std::map<std::string, int64_t*> numbers = {{"--ranks", &options.ranks},
                                                   {"--replicas", &options.replicas},
                                                   {"--ep", &options.ep},
                                                   {"--max-shard-bytes", &options.max_shard_bytes}};
  for (size_t i = first; i < args.size(); ++i) {
    if (args[i] == "--resume") {
      options.resume = true;
      continue;
    }
    if (i + 1 == args.size()) throw std::runtime_error("no value for " + args[i]);
    const auto number = numbers.find(args[i]);
    if (args[i] == "--dtype") {
      options.dtype = args[i + 1];
    } else if (number == numbers.end() || !absl::SimpleAtoi(args[i + 1], number->second)) {
      throw std::runtime_error("unknown option " + args[i] + " " + args[i + 1]);
    }
    ++i;
  }
  return options;
}

int Run(const std::vector<std::string>& args) {
  const std::string command = args.size() > 1 ? args[1] : "";
  if (command == "check" && args.size() == 3) {
    Check(args[2]);
  } else if (command == "rewrite" && args.size() == 4) {
    Rewrite(args[2], args[3]);
  } else if (command == "model" && args.size() >= 4) {
    RunModel(args[2], args[3], ParseOptions(args, 4));
    std::cout << "ok\n";
  } else {
    std::cerr << "usage: roundtrip_tool check|rewrite|model ...\n";
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  try {
    return switchyard::Run(std::vector<std::string>(argv, argv + argc));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
