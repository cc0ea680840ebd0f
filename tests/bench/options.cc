#include "tests/bench/options.h"

#include <functional>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/edit_distance.h"

namespace switchyard::bench {

const char kHelp[] =
    "switchyard-bench COMMAND [flags]: measures on one GPU; each row is checked before it is "
    "timed.\n"
    "  kernels [NAME...]   every CUDA kernel beside its peers, cold L2, p50 and p95 of 50 calls\n"
    "  step                whole training steps: forward, backward, clipping, optimizer\n"
    "  layers              one layer forward and backward, by difference of N and N/2 layers\n"
    "  timeline            kernels of one layer in order, and the host's waits for the device\n"
    "Flags of step, layers and timeline:\n"
    "  --shape qwen3-30b-a3b        sizes of a layer; also: toy\n"
    "  --layers 4\n"
    "  --micro-batch 1,2,4,8        rows of one step, one micro-batch each\n"
    "  --sequence 4096              tokens of a row (with --data random)\n"
    "  --layout 8B                  8B: bf16 weights, gradients, moments; exact: + fp32 master\n"
    "  --activation-memory lean     lean, full_recompute, offload\n"
    "  --data random                random ids, or a token file of switchyard-prep\n"
    "  --steps 8 --warm-up 4        the median of the steps counts\n"
    "  --device cuda:0\n"
    "Flags of all:\n"
    "  --json FILE                  the rows as JSON, one object per line\n"
    "Exit codes: 0, 1 a wrong result, 2 usage.\n";

namespace {

template <class Value>
absl::Status Choose(const std::string& flag, const std::string& text,
                    const std::vector<std::pair<const char*, Value>>& choices, Value* value) {
  std::string known;
  for (const auto& [name, choice] : choices) {
    if (text == name) {
      *value = choice;
      return absl::OkStatus();
    }
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
  }
  return absl::InvalidArgumentError(absl::StrCat(flag, ": \"", text, "\" is none of ", known));
}

absl::Status Positive(const std::string& flag, const std::string& text, int64_t* value) {
  if (absl::SimpleAtoi(text, value) && *value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": \"", text, "\" is no positive number"));
}

absl::Status PositiveList(const std::string& flag, const std::string& text,
                          std::vector<int64_t>* values) {
  values->clear();
  for (const auto part : absl::StrSplit(text, ',')) {
    int64_t value = 0;
    if (absl::Status status = Positive(flag, std::string(part), &value); !status.ok())
      return status;
    values->push_back(value);
  }
  return absl::OkStatus();
}

absl::Status Take(std::string* target, const std::string& text) {
  *target = text;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& arguments) {
  Options o;
  using Setter = std::function<absl::Status(const std::string& flag, const std::string& text)>;
  const std::map<std::string, Setter> flags = {
      {"--shape", [&](auto&, auto& text) { return Take(&o.shape, text); }},
      {"--layers", [&](auto& flag, auto& text) { return Positive(flag, text, &o.layers); }},
      {"--micro-batch",
       [&](auto& flag, auto& text) { return PositiveList(flag, text, &o.micro_batches); }},
      {"--sequence", [&](auto& flag, auto& text) { return Positive(flag, text, &o.sequence); }},
      {"--layout",
       [&](auto& flag, auto& text) {
         return Choose<StateLayout>(
             flag, text, {{"8B", StateLayout::k8B}, {"exact", StateLayout::kExact}}, &o.layout);
       }},
      {"--activation-memory",
       [&](auto& flag, auto& text) {
         return Choose<ActivationMemory>(flag, text,
                                         {{"lean", ActivationMemory::kLean},
                                          {"full_recompute", ActivationMemory::kFullRecompute},
                                          {"offload", ActivationMemory::kOffload}},
                                         &o.activation_memory);
       }},
      {"--data", [&](auto&, auto& text) { return Take(&o.data, text); }},
      {"--device", [&](auto&, auto& text) { return Take(&o.device, text); }},
      {"--steps", [&](auto& flag, auto& text) { return Positive(flag, text, &o.steps); }},
      {"--warm-up", [&](auto& flag, auto& text) { return Positive(flag, text, &o.warm_up); }},
      {"--json", [&](auto&, auto& text) { return Take(&o.json, text); }},
  };
  bool has_command = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--help") {
      o.help = true;
      return o;
    }
    if (argument.rfind("--", 0) != 0) {
      if (has_command && o.command == Command::kKernels) {
        o.kernels.push_back(argument);
        continue;
      }
      if (has_command) return absl::InvalidArgumentError(absl::StrCat("what is ", argument, "?"));
      if (absl::Status status = Choose<Command>("command", argument,
                                                {{"kernels", Command::kKernels},
                                                 {"step", Command::kStep},
                                                 {"layers", Command::kLayers},
                                                 {"timeline", Command::kTimeline}},
                                                &o.command);
          !status.ok()) {
        return status;
      }
      has_command = true;
      continue;
    }
    std::string name = argument, value;
    if (const size_t equals = argument.find('='); equals != std::string::npos) {
      name = argument.substr(0, equals);
      value = argument.substr(equals + 1);
    } else if (i + 1 < arguments.size()) {
      value = arguments[++i];
    }
    const auto found = flags.find(name);
    if (found == flags.end()) {
      std::vector<std::string> known = {"--help"};
      for (const auto& [flag, setter] : flags) known.push_back(flag);
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag ", name, "; did you mean ", Nearest(name, known), "?"));
    }
    if (absl::Status status = found->second(name, value); !status.ok()) return status;
  }
  if (!has_command) {
    return absl::InvalidArgumentError("give a command: kernels, step, layers or timeline");
  }
  return o;
}

absl::StatusOr<ModelConfig> ShapeByName(const std::string& name, int64_t layers) {
  ModelConfig c;
  c.model_type = "qwen3_moe";
  c.num_layers = layers;
  c.norm_topk_prob = true;
  if (name == "qwen3-30b-a3b") {
    c.vocab_size = 151936;
    c.hidden_size = 2048;
    c.intermediate_size = 6144;
    c.num_heads = 32;
    c.num_kv_heads = 4;
    c.head_dim = 128;
    c.moe_intermediate_size = 768;
    c.num_experts = 128;
    c.top_k = 8;
    c.max_position_embeddings = 40960;
    c.rope.theta = 1e6;
    return c;
  }
  if (name == "toy") {  // for tests of this program
    c.vocab_size = 512;
    c.hidden_size = 64;
    c.intermediate_size = 64;
    c.num_heads = 4;
    c.num_kv_heads = 2;
    c.head_dim = 16;
    c.moe_intermediate_size = 32;
    c.num_experts = 8;
    c.top_k = 2;
    return c;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--shape: \"", name, "\" is none of qwen3-30b-a3b, toy"));
}

}  // namespace switchyard::bench
