#include "worker/trainer/config.h"

#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

ConfigFrame Frame(const std::string& job) {
  ConfigFrame frame;
  frame.job = ParseJson(job, "job").value();
  frame.world_size = 2;
  frame.rank = 1;
  frame.master_address = "127.0.0.1";
  frame.master_port = 29500;
  frame.device = "cpu";
  frame.job_dir = "/jobs/j1";
  frame.train_tokens = "/tokens/train.tok";
  return frame;
}

// As protobuf prints a JobSpec: int64 as strings, enums by name, defaults included.
constexpr char kJob[] = R"({
  "model": {"path": "/models/m", "dtype": "bfloat16", "random_init": false, "router_fp32": true,
            "aux_loss": "AUX_LOSS_MEGATRON", "aux_loss_coef": 0.01,
            "activation_memory": "ACTIVATION_MEMORY_FULL_RECOMPUTE", "loss_chunk_tokens": 128},
  "data": {"shuffle": true, "seq_length": 512},
  "batch": {"global_batch_size": 16, "local_batch_size": 4, "max_steps": "100", "num_epochs": 2,
            "val_every_steps": "0"},
  "optimizer": {"kind": "OPTIMIZER_KIND_ADAM", "lr": 0.001, "beta1": 0.8, "beta2": 0.95,
                "eps": 1e-7, "weight_decay": 0.1, "max_grad_norm": 1.0, "moment_dtype": "bfloat16",
                "max_nonfinite_steps": 0},
  "lr_schedule": {"decay": "LR_DECAY_WSD", "warmup_steps": "10", "decay_steps": "0",
                  "min_lr": 1e-5, "init_lr": 0.0, "wsd_decay_steps": "20",
                  "wsd_tail": "WSD_TAIL_MINUS_SQRT"},
  "parallel": {"num_ranks": 2, "ep_size": 2, "dp_replicate_size": 0,
               "reshard_after_forward": true, "collective_timeout": "90s"},
  "checkpoint": {"every_steps": "50", "every_epoch": true, "save_optimizer": true,
                 "max_shard_bytes": "1000000", "restore_from": "/ckpt"},
  "seed": 7
})";

TEST(TrainConfigTest, ReadsEveryField) {
  const absl::StatusOr<TrainConfig> read = ReadTrainConfig(Frame(kJob));
  ASSERT_THAT(read, IsOk());
  const TrainConfig& c = *read;
  EXPECT_THAT(c.Validate(), IsEmpty());
  EXPECT_EQ(c.run.rank, 1);
  EXPECT_EQ(c.run.seed, 7u);
  EXPECT_EQ(c.model.path, "/models/m");
  EXPECT_EQ(c.model.dtype, TrainDtype::kBfloat16);
  EXPECT_TRUE(c.model.router_fp32);
  EXPECT_EQ(c.model.aux_loss, TrainConfig::Aux::kMegatron);
  EXPECT_EQ(c.model.aux_loss_coef, 0.01);
  EXPECT_EQ(c.model.activations, TrainConfig::Activations::kFullRecompute);
  EXPECT_EQ(c.model.loss_chunk_tokens, 128);
  EXPECT_TRUE(c.data.shuffle);
  EXPECT_EQ(c.batch.global_batch_size, 16);
  EXPECT_EQ(c.batch.local_batch_size, 4);
  EXPECT_EQ(c.batch.max_steps, 100);
  EXPECT_FALSE(c.optimizer.decoupled);
  EXPECT_EQ(c.lr_schedule.lr, 0.001);
  EXPECT_EQ(c.optimizer.beta1, 0.8);
  EXPECT_EQ(c.optimizer.moment_dtype, TrainDtype::kBfloat16);
  EXPECT_EQ(c.optimizer.max_nonfinite_steps, 3) << "0 is unset";
  EXPECT_EQ(c.lr_schedule.decay, LrDecay::kWsd);
  EXPECT_EQ(c.lr_schedule.wsd_tail, WsdTail::kMinusSqrt);
  EXPECT_EQ(c.lr_schedule.wsd_decay_steps, 20);
  EXPECT_EQ(c.parallel.ep_size, 2);
  EXPECT_EQ(c.parallel.dp_replicate_size, 1) << "0 is unset";
  EXPECT_EQ(c.parallel.collective_timeout, absl::Seconds(90));
  EXPECT_EQ(c.checkpoint.every_steps, 50);
  EXPECT_TRUE(c.checkpoint.every_epoch);
  EXPECT_TRUE(c.checkpoint.save_optimizer);
  EXPECT_EQ(c.checkpoint.max_shard_bytes, 1000000);
  EXPECT_EQ(c.checkpoint.restore_from, "/ckpt");
}

TEST(TrainConfigTest, AnUnsetAuxLossCoefficientIsNotZero) {
  const TrainConfig c = ReadTrainConfig(Frame(R"({"model": {"path": "/m"}})")).value();
  EXPECT_FALSE(c.model.aux_loss_coef.has_value());
  EXPECT_EQ(c.model.aux_loss, TrainConfig::Aux::kHf);
}

TEST(TrainConfigTest, WrongTypesAndNamesAreAllReported) {
  EXPECT_THAT(
      ReadTrainConfig(Frame(R"({
        "model": {"path": 3, "activation_memory": "ACTIVATION_MEMORY_LOTS"},
        "optimizer": {"lr": "fast", "moment_dtype": "float16"},
        "parallel": {"collective_timeout": "soon"}, "seed": -1, "batch": []})")),
      StatusIs(absl::StatusCode::kInvalidArgument,
               AllOf(HasSubstr("job.model.path"), HasSubstr("ACTIVATION_MEMORY_LOTS"),
                     HasSubstr("job.optimizer.lr"), HasSubstr("\"float16\""), HasSubstr("\"soon\""),
                     HasSubstr("job.seed"), HasSubstr("job.batch: must be an object"))));
}

TEST(TrainConfigTest, ValidateReportsAllFaults) {
  TrainConfig c = ReadTrainConfig(Frame(kJob)).value();
  c.run.device = "tpu:0";
  c.run.master_port = 0;
  c.batch.global_batch_size = 12;
  c.batch.val_every_steps = 5;
  c.optimizer.beta2 = 1.0;
  c.model.aux_loss = TrainConfig::Aux::kOff;
  EXPECT_THAT(c.Validate(),
              ElementsAre(HasSubstr("a gang of 2 needs one"), HasSubstr("\"tpu:0\""),
                          HasSubstr("aux_loss is off"),
                          HasSubstr("12 is not a multiple of local_batch_size 4 x 2 ranks"),
                          HasSubstr("no validation data"), HasSubstr("beta2 is 1")));
}

TEST(TrainConfigTest, LayoutsOfTheOptimizerAndOffloadingNeedNoMoreThanTheirNames) {
  TrainConfig c = ReadTrainConfig(Frame(R"({
        "model": {"path": "/m", "activation_memory": "ACTIVATION_MEMORY_OFFLOAD"},
        "optimizer": {"gradient_dtype": "bfloat16", "exact_master": false},
        "deterministic": true, "batch": {"max_steps": "3"}})"))
                      .value();
  EXPECT_EQ(c.optimizer.gradient_dtype, TrainDtype::kBfloat16);
  EXPECT_FALSE(c.optimizer.exact_master);
  EXPECT_TRUE(c.run.deterministic);
  EXPECT_THAT(c.Validate(), Contains(HasSubstr("OFFLOAD")));
  c.run.device = "cuda:1";
  EXPECT_THAT(c.Validate(), Not(Contains(HasSubstr("OFFLOAD"))));
  EXPECT_TRUE(ReadTrainConfig(Frame("{}")).value().optimizer.exact_master) << "unset";
}

TEST(TrainConfigTest, TotalStepsIsTheSmallerOfBothLimits) {
  EXPECT_EQ(TotalSteps({.max_steps = 5, .num_epochs = 0}, 10).value(), 5);
  EXPECT_EQ(TotalSteps({.max_steps = 0, .num_epochs = 3}, 10).value(), 30);
  EXPECT_EQ(TotalSteps({.max_steps = 25, .num_epochs = 2}, 10).value(), 20);
  EXPECT_EQ(TotalSteps({.max_steps = 15, .num_epochs = 2}, 10).value(), 15);
  EXPECT_THAT(TotalSteps({}, 10), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(TrainConfigTest, TheScheduleDecaysOverTheJobUnlessTold) {
  LrSchedule schedule;
  schedule.decay = LrDecay::kCosine;
  schedule.warmup_steps = 10;
  EXPECT_EQ(ResolveLrSchedule(schedule, 40).value().decay_steps, 40);
  schedule.decay_steps = 30;
  EXPECT_EQ(ResolveLrSchedule(schedule, 40).value().decay_steps, 30);
  schedule.decay_steps = 0;
  EXPECT_THAT(ResolveLrSchedule(schedule, 10),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("decay_steps 10")));
}

}  // namespace
}  // namespace switchyard
