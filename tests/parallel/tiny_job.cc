#include "tests/parallel/tiny_job.h"

#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/trainer/checkpoint/or_throw.h"
#include "worker/trainer/config.h"
#include "worker/trainer/control.h"
#include "worker/trainer/data/token_file.h"
#include "worker/trainer/parallel/in_process_comm.h"
#include "worker/trainer/trainer.h"

namespace switchyard {
namespace {

constexpr int kVocab = 64, kRowLength = 32;

constexpr char kModel[] = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "float32",
  "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
  "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true,
  "mlp_only_layers": [1], "decoder_sparse_step": 1, "output_router_logits": true,
  "router_aux_loss_coef": 0.01, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "max_position_embeddings": 64, "attention_bias": false, "tie_word_embeddings": false,
  "initializer_range": 0.1
})";

// Sizes of kModel and what they become for kernels.
constexpr std::pair<const char*, const char*> kWider[] = {
    {"\"hidden_size\": 32", "\"hidden_size\": 128"},
    {"\"intermediate_size\": 48", "\"intermediate_size\": 256"},
    {"\"num_attention_heads\": 4", "\"num_attention_heads\": 2"},
    {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 1"},
    {"\"head_dim\": 8", "\"head_dim\": 128"},
    {"\"moe_intermediate_size\": 16", "\"moe_intermediate_size\": 64"},
    {"\"initializer_range\": 0.1", "\"initializer_range\": 0.05"}};

// Rows of 1 to 3 documents of ragged lengths, together at most kRowLength; each document counts on
// by its own stride, so there is something to learn. Its first third is not supervised.
TokenData MakeTokens(int64_t rows, uint32_t seed) {
  TokenData data;
  data.row_length = kRowLength;
  data.fingerprint = absl::StrCat("tiny-", seed);
  uint32_t random = seed;
  const auto draw = [&random](uint32_t below) {
    random = random * 1664525u + 1013904223u;
    return (random >> 16) % below;
  };
  for (int64_t row = 0; row < rows; ++row) {
    data.rows.push_back(static_cast<int64_t>(data.documents.size()));
    const uint32_t documents = 1 + draw(3);
    for (uint32_t d = 0; d < documents; ++d) {
      data.documents.push_back(static_cast<int64_t>(data.tokens.size()));
      const int length = 3 + static_cast<int>(draw(kRowLength / 3 - 3));
      uint32_t token = draw(kVocab);
      const uint32_t stride = 1 + draw(3);
      for (int t = 0; t < length; ++t) {
        data.tokens.push_back(static_cast<int32_t>(token));
        data.supervised.push_back(t > 0 && t >= length / 3);
        token = (token + stride) % kVocab;
      }
    }
  }
  return data;
}

std::string DeviceOf(const TinyJob& job, int rank) {
  if (job.device != "cuda") return job.device;
  const int count = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
  return absl::StrCat("cuda:", rank % std::max(count, 1));
}

// Ranks of one process that share a GPU would share its default stream, too.
class RankStream {
 public:
  RankStream(const std::string& device, int world) {
    if (world == 1 || device == "cpu") return;
    const c10::Device gpu(device);
    guard_.emplace(c10::impl::VirtualGuardImpl(gpu.type()).getStreamFromGlobalPool(gpu));
  }

 private:
  std::optional<c10::StreamGuard> guard_;
};

}  // namespace

TempFolder::TempFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "switchyard.XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path_ = name;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void MakeTinyData(const std::string& folder, bool for_kernels) {
  std::filesystem::create_directories(folder + "/model");
  std::string model = kModel;
  for (const auto& [from, to] : kWider) {
    if (for_kernels) model.replace(model.find(from), std::strlen(from), to);
  }
  std::ofstream(folder + "/model/config.json") << model;
  OrThrow(WriteTokenFile(folder + "/train.tok", MakeTokens(44, 1)));
  OrThrow(WriteTokenFile(folder + "/validation.tok", MakeTokens(11, 2)));
}

ConfigFrame MakeFrame(const TinyJob& job, int rank) {
  ConfigFrame frame;
  frame.job = {
      {"model",
       {{"path", job.folder + "/model"},
        {"dtype", job.dtype},
        {"random_init", true},
        {"activation_memory", job.activation_memory}}},
      {"data", {{"shuffle", true}}},
      {"batch",
       {{"global_batch_size", 8},
        {"local_batch_size", job.local_batch_size},
        {"max_steps", std::to_string(job.max_steps)},
        {"val_every_steps", std::to_string(job.val_every_steps)}}},
      {"optimizer",
       {{"kind", "OPTIMIZER_KIND_ADAMW"},
        {"lr", job.lr},
        {"beta1", 0.9},
        {"beta2", 0.95},
        {"eps", 1e-8},
        {"weight_decay", 0.01},
        {"max_grad_norm", 1.0},
        {"moment_dtype", job.moment_dtype},
        {"gradient_dtype", job.gradient_dtype},
        {"exact_master", job.exact_master}}},
      {"lr_schedule", {{"decay", "LR_DECAY_COSINE"}, {"warmup_steps", "2"}, {"decay_steps", "20"}}},
      {"parallel",
       {{"num_ranks", job.gang.world},
        {"ep_size", job.gang.ep},
        {"dp_replicate_size", job.gang.replicate},
        {"reshard_after_forward", job.reshard_after_forward},
        {"collective_timeout", "60s"}}},
      {"checkpoint", {{"every_steps", std::to_string(job.every_steps)}, {"save_optimizer", true}}},
      {"deterministic", job.deterministic},
      {"seed", 42}};
  frame.job_name = "projects/default/jobs/tiny";
  frame.job_uid = "uid";
  frame.attempt = 1;
  frame.rank = rank;
  frame.world_size = job.gang.world;
  frame.local_rank = rank;
  frame.master_address = "127.0.0.1";
  frame.master_port = job.master_port == 0 ? 29500 : job.master_port;
  frame.device = DeviceOf(job, rank);
  frame.threads = 1;
  frame.job_dir = job.job_dir;
  frame.resume_from = job.resume_from;
  frame.train_tokens = job.folder + "/train.tok";
  frame.validation_tokens = {{"validation", job.folder + "/validation.tok"}};
  return frame;
}

void RunReport::Add(const RankFrame& frame) {
  if (const auto* step = std::get_if<StepFrame>(&frame)) steps.push_back(*step);
  if (const auto* v = std::get_if<ValidationFrame>(&frame)) validations.push_back(*v);
  if (const auto* c = std::get_if<CheckpointFrame>(&frame)) checkpoints.push_back(*c);
  if (const auto* phase = std::get_if<PhaseFrame>(&frame)) phases.push_back(phase->name);
  if (const auto* plan = std::get_if<PlanFrame>(&frame)) plans.push_back(*plan);
  if (const auto* done = std::get_if<DoneFrame>(&frame)) {
    stopped = done->stopped;
    done_step = done->step;
  }
}

std::vector<double> RunReport::Losses() const {
  std::vector<double> losses;
  for (const StepFrame& step : steps) losses.push_back(step.loss);
  return losses;
}

RunReport RunInThreads(const TinyJob& job, const std::function<bool(const StepFrame&)>& on_step) {
  RunReport report;
  RunInProcess(job.gang.world, absl::Seconds(60), [&](int rank, InProcessWorld& world) {
    const TrainConfig config = OrThrow(ReadTrainConfig(MakeFrame(job, rank)));
    const RankStream stream(config.run.device, job.gang.world);
    Control control;
    TrainerEnvironment environment;
    environment.make_comms = [&](const Mesh& mesh) { return world.MakeComms(mesh); };
    environment.control = &control;
    environment.clock = &RealClock::Get();
    environment.commit_timeout = absl::ZeroDuration();
    environment.report = [&, rank](const RankFrame& frame) {
      if (rank != 0) return;
      report.Add(frame);
      const auto* step = std::get_if<StepFrame>(&frame);
      if (step != nullptr && on_step != nullptr && on_step(*step)) {
        control.RequestStop(/*checkpoint=*/true);
      }
    };
    Train(config, environment);
  });
  return report;
}

std::string WeightBytes(const std::string& checkpoint_folder) {
  std::ifstream file(checkpoint_folder + "/model.safetensors", std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

}  // namespace switchyard
