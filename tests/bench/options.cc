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
    "switchyard-bench COMMAND [flags]: measures on GPUs; each row is checked before it is timed.\n"
    "  kernels [NAME...]   every CUDA kernel beside its peers, cold L2, p50 and p95 of 50 calls\n"
    "  step                whole training steps: forward, backward, clipping, optimizer\n"
    "  layers              one layer forward and backward, by difference of N and N/2 layers\n"
    "  timeline            kernels of one layer in order, and the host's waits for the device\n"
    "  ep                  expert parallelism on several GPUs, beside NCCL's all-to-all\n"
    "Flags of step, layers, timeline and ep:\n"
    "  --shape qwen3-30b-a3b        sizes of a layer; also: toy\n"
    "  --layers 4\n"
    "  --micro-batch 1,2,4,8        rows of one step, one micro-batch each\n"
    "  --sequence 4096              tokens of a row (with --data random)\n"
    "  --layout 8B                  8B: bf16 weights, gradients, moments; exact: + fp32 master\n"
    "  --activation-memory lean     lean, full_recompute, offload\n"
    "  --data random                random ids, or a token file of switchyard-prep\n"
    "  --steps 8 --warm-up 4        the median of the steps counts\n"
    "  --device cuda:0              ep: cuda (rank r on GPU r) or cpu\n"
    "Flags of ep:\n"
    "  --gpus 2                     ranks, one process and one GPU each\n"
    "  --in-process R               ranks, threads that share the GPUs there are, instead\n"
    "  --parts exchange,layer,step  exchange: dispatch and combine alone; layer: the MoE block; "
    "step;\n"
    "                               parity: steps of one rank against steps of all\n"
    "  --dispatchers push,collective\n"
    "  --routing uniform,skewed     exchange and layer\n"
    "  --tokens 4096,8192           of a rank; exchange and layer\n"
    "  --hidden 2048,7168           exchange\n"
    "  --blocks 16                  multiprocessors of a push; more values: exchange\n"
    "  --kill-rank R                exchange: R dies; the others must end with an error\n"
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

template <class Value>
absl::Status ChooseList(const std::string& flag, const std::string& text,
                        const std::vector<std::pair<const char*, Value>>& choices,
                        std::vector<Value>* values) {
  values->clear();
  for (const auto part : absl::StrSplit(text, ',')) {
    Value value{};
    if (absl::Status status = Choose(flag, std::string(part), choices, &value); !status.ok())
      return status;
    values->push_back(value);
  }
  return absl::OkStatus();
}

absl::Status NotNegative(const std::string& flag, const std::string& text, int64_t* value) {
  if (absl::SimpleAtoi(text, value) && *value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, ": \"", text, "\" is no number"));
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
      {"--gpus", [&](auto& flag, auto& text) { return Positive(flag, text, &o.ep.ranks); }},
      {"--in-process",
       [&](auto& flag, auto& text) {
         o.ep.in_process = true;
         return Positive(flag, text, &o.ep.ranks);
       }},
      {"--parts",
       [&](auto& flag, auto& text) {
         return ChooseList<EpPart>(flag, text,
                                   {{"exchange", EpPart::kExchange},
                                    {"layer", EpPart::kLayer},
                                    {"step", EpPart::kStep},
                                    {"parity", EpPart::kParity}},
                                   &o.ep.parts);
       }},
      {"--dispatchers",
       [&](auto& flag, auto& text) {
         return ChooseList<DispatcherKind>(
             flag, text,
             {{"push", DispatcherKind::kPush}, {"collective", DispatcherKind::kCollective}},
             &o.ep.dispatchers);
       }},
      {"--routing",
       [&](auto& flag, auto& text) {
         return ChooseList<Routing>(flag, text,
                                    {{"uniform", Routing::kUniform}, {"skewed", Routing::kSkewed}},
                                    &o.ep.routings);
       }},
      {"--tokens", [&](auto& flag, auto& text) { return PositiveList(flag, text, &o.ep.tokens); }},
      {"--hidden", [&](auto& flag, auto& text) { return PositiveList(flag, text, &o.ep.hidden); }},
      {"--blocks", [&](auto& flag, auto& text) { return PositiveList(flag, text, &o.ep.blocks); }},
      {"--kill-rank",
       [&](auto& flag, auto& text) { return NotNegative(flag, text, &o.ep.kill_rank); }},
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
                                                 {"timeline", Command::kTimeline},
                                                 {"ep", Command::kEp}},
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
    return absl::InvalidArgumentError("give a command: kernels, step, layers, timeline or ep");
  }
  if (o.ep.kill_rank >= o.ep.ranks || (o.ep.kill_rank >= 0 && o.ep.in_process)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kill-rank: ", o.ep.kill_rank, " is no process among ", o.ep.ranks));
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
