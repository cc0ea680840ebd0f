#include "client/recipe.h"

#include <cstdlib>
#include <fstream>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "client/recipe_keys.h"
#include "client/recipe_targets.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// What a minimal recipe needs; tests add to it.
constexpr char kMinimal[] = R"(
step_scheduler: {global_batch_size: 8, local_batch_size: 2, max_steps: 100}
model: {pretrained_model_name_or_path: /models/m}
dataset: {path_or_dataset_id: /data/d.jsonl}
optimizer: {lr: 1e-4}
)";

RecipeOptions TestOptions() {
  RecipeOptions options;
  options.name = "recipe.yaml";
  options.folder = "/recipes";
  options.env = [](const std::string& name) -> std::optional<std::string> {
    if (name == "MODELS") return "/models";
    if (name == "STEPS") return "12";
    return std::nullopt;
  };
  options.exists = [](const std::string& path) {
    return path == "/recipes/templates/chat.jinja" || path == "/recipes/local/model";
  };
  return options;
}

absl::StatusOr<Recipe> Read(const std::string& text, std::vector<std::string> overrides = {}) {
  RecipeOptions options = TestOptions();
  options.overrides = std::move(overrides);
  return ReadRecipe(text, options);
}

// kMinimal with overrides.
Recipe Minimal(std::vector<std::string> overrides = {}) {
  absl::StatusOr<Recipe> recipe = Read(kMinimal, std::move(overrides));
  EXPECT_THAT(recipe, IsOk());
  return recipe.ok() ? *recipe : Recipe();
}

// "verdict: note" of a key; empty when the report has no such line.
std::string LineOf(const Recipe& recipe, const std::string& key) {
  for (const ReportLine& line : recipe.report) {
    if (line.key == key) return absl::StrCat(VerdictName(line.verdict), ": ", line.note);
  }
  return "";
}

std::vector<std::string> Refused(const Recipe& recipe) {
  std::vector<std::string> out;
  for (const ReportLine& line : recipe.report) {
    if (line.verdict == Verdict::kRefused) out.push_back(absl::StrCat(line.key, ": ", line.note));
  }
  return out;
}

std::string SourcePath(const std::string& path) {
  const char* folder = std::getenv("SY_SOURCE_DIR");
  return absl::StrCat(folder == nullptr ? "." : folder, "/", path);
}

std::string Render(const Recipe& recipe) {
  std::string out;
  for (const ReportLine& line : recipe.report) {
    absl::StrAppendFormat(&out, "%-8s %s%s%s\n", VerdictName(line.verdict), line.key,
                          line.note.empty() ? "" : ": ", line.note);
  }
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  std::string json;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(recipe.spec, &json, print).ok());
  // Sorted keys: protobuf prints maps in any order.
  return absl::StrCat(out, "\n", nlohmann::json::parse(json).dump(1), "\n");
}

// --- whole recipes ------------------------------------------------------------------------------

class GoldenTest : public testing::TestWithParam<const char*> {};

// SY_UPDATE_GOLDENS=1 writes the files anew; the change is then read in review.
TEST_P(GoldenTest, ReportAndSpecAreAsRecorded) {
  const std::string path = SourcePath(absl::StrCat("tests/client/recipes/", GetParam()));
  absl::StatusOr<std::string> text = ReadFile(path + ".yaml");
  ASSERT_THAT(text, IsOk());
  absl::StatusOr<Recipe> recipe = Read(*text);
  ASSERT_THAT(recipe, IsOk());
  const std::string got = Render(*recipe);
  if (std::getenv("SY_UPDATE_GOLDENS") != nullptr) std::ofstream(path + ".golden") << got;
  absl::StatusOr<std::string> want = ReadFile(path + ".golden");
  ASSERT_THAT(want, IsOk());
  EXPECT_EQ(got, *want);
}

INSTANTIATE_TEST_SUITE_P(Recipes, GoldenTest,
                         testing::Values("moe_sft", "moe_lora", "moe_deepep", "convergence",
                                         "column_mapped"),
                         [](const auto& info) {
                           return absl::StrReplaceAll(info.param, {{"_", ""}});
                         });

TEST(RecipeTest, AutoModelsRecipeRunsOnceThePathsAreLocal) {
  absl::StatusOr<std::string> text = ReadFile(SourcePath("tests/client/recipes/moe_sft.yaml"));
  ASSERT_THAT(text, IsOk());
  absl::StatusOr<Recipe> recipe = Read(
      *text, {"model.pretrained_model_name_or_path=/models/q", "dataset.path_or_dataset=/data/h",
              "validation_dataset.path_or_dataset=/data/h"});
  ASSERT_THAT(recipe, IsOk());
  EXPECT_THAT(Refused(*recipe), ElementsAre());
  EXPECT_EQ(recipe->spec.parallel().ep_size(), 8);
}

TEST(RecipeTest, ShippedExamplesAreAccepted) {
  for (const char* name : {"quickstart", "qwen3_moe_30b_hellaswag"}) {
    absl::StatusOr<std::string> text =
        ReadFile(SourcePath(absl::StrCat("deploy/recipes/", name, ".yaml")));
    ASSERT_THAT(text, IsOk());
    absl::StatusOr<Recipe> recipe = Read(*text);
    ASSERT_THAT(recipe, IsOk());
    EXPECT_THAT(Refused(*recipe), ElementsAre()) << name;
  }
}

TEST(RecipeTest, EveryKeyOfTheFileIsInTheReport) {
  const Recipe recipe =
      Minimal({"wandb.project=x", "step_scheduler.max_step=3", "ci.a.b=1", "model.backend.attn=te",
               "validation_dataset_x.path_or_dataset=/d"});
  for (const char* key :
       {"step_scheduler.global_batch_size", "step_scheduler.local_batch_size",
        "step_scheduler.max_steps", "model.pretrained_model_name_or_path",
        "dataset.path_or_dataset_id", "optimizer.lr", "wandb.project", "step_scheduler.max_step",
        "ci.a.b", "model.backend.attn", "validation_dataset_x.path_or_dataset"}) {
    EXPECT_NE(LineOf(recipe, key), "") << key;
  }
}

TEST(RecipeTest, TheDocumentationsTableIsCurrent) {
  absl::StatusOr<std::string> doc = ReadFile(SourcePath("docs/recipes.md"));
  ASSERT_THAT(doc, IsOk());
  const std::string begin = "<!-- begin: switchyard recipe-keys --markdown -->\n";
  const size_t from = doc->find(begin);
  const size_t to = doc->find("<!-- end -->");
  ASSERT_NE(from, std::string::npos);
  ASSERT_NE(to, std::string::npos);
  EXPECT_EQ(doc->substr(from + begin.size(), to - from - begin.size()), RecipeKeysMarkdown())
      << "paste the output of `switchyard recipe-keys --markdown` into docs/recipes.md";
}

TEST(RecipeTest, TableHasNoKeyTwiceAndReasonsForWhatItDoesNotDo) {
  std::set<std::string> seen;
  for (const RecipeKey& row : RecipeKeys()) {
    EXPECT_TRUE(seen.insert(row.path).second) << row.path;
    EXPECT_NE(absl::string_view(row.what), "") << row.path;
    // A used key must do something, or be judged by its value alone.
    if (row.verdict == Verdict::kUsed && row.apply == nullptr) {
      EXPECT_TRUE(row.type == ValueType::kTarget || row.type == ValueType::kChoice) << row.path;
    }
  }
  for (const RecipeTarget& target : RecipeTargets()) {
    const std::string key = target.key;
    EXPECT_TRUE(seen.count(key) == 1) << key;
  }
}

// --- what a value becomes -----------------------------------------------------------------------

TEST(RecipeTest, AWholeSpecComesOut) {
  const Recipe recipe = Minimal({"seed=7", "distributed.ep_size=2", "resources.num_ranks=4",
                                 "optimizer.betas=[0.8, 0.9]", "lr_scheduler.lr_decay_style=linear",
                                 "packed_sequence.packed_sequence_size=512"});
  EXPECT_THAT(Refused(recipe), ElementsAre());
  const v1::JobSpec& spec = recipe.spec;
  EXPECT_EQ(spec.seed(), 7u);
  EXPECT_EQ(spec.model().path(), "/models/m");
  EXPECT_EQ(spec.model().dtype(), "bfloat16");
  EXPECT_THAT(spec.data().train().paths(), ElementsAre("/data/d.jsonl"));
  EXPECT_EQ(spec.data().packing(), v1::PACKING_BEST_FIT);
  EXPECT_EQ(spec.data().seq_length(), 512);
  EXPECT_TRUE(spec.data().shuffle());
  EXPECT_EQ(spec.parallel().ep_size(), 2);
  EXPECT_EQ(spec.parallel().num_ranks(), 4);
  EXPECT_EQ(spec.optimizer().beta1(), 0.8);
  EXPECT_EQ(spec.optimizer().beta2(), 0.9);
  EXPECT_EQ(spec.optimizer().weight_decay(), 0.01);
  EXPECT_EQ(spec.optimizer().max_grad_norm(), 1.0);
  EXPECT_EQ(spec.lr_schedule().decay(), v1::LR_DECAY_LINEAR);
  EXPECT_EQ(spec.lr_schedule().warmup_steps(), 10);
  EXPECT_DOUBLE_EQ(spec.lr_schedule().init_lr(), 1e-5);
  EXPECT_DOUBLE_EQ(spec.lr_schedule().min_lr(), 1e-6);
  EXPECT_EQ(spec.retry().max_retries(), 20) << "budgets are judged by progress";
  EXPECT_TRUE(spec.checkpoint().save_optimizer());
  EXPECT_TRUE(spec.checkpoint().every_epoch());
}

TEST(RecipeTest, SeedFollowsSeedThenRngThenAutoModelsDefault) {
  EXPECT_EQ(Minimal().spec.seed(), 42u);
  EXPECT_EQ(Minimal({"rng.seed=1111"}).spec.seed(), 1111u);
  const Recipe both = Minimal({"rng.seed=1111", "seed=5"});
  EXPECT_EQ(both.spec.seed(), 5u);
  EXPECT_THAT(LineOf(both, "rng.seed"), HasSubstr("ignored: `seed` is there and holds: 5"));
}

TEST(RecipeTest, LengthIsTenEpochsUnlessTheFileSaysOtherwise) {
  EXPECT_EQ(Minimal().spec.batch().num_epochs(), 0);
  EXPECT_EQ(Minimal({"step_scheduler.max_steps=none"}).spec.batch().num_epochs(), 10);
  EXPECT_EQ(Minimal({"step_scheduler.num_epochs=3"}).spec.batch().num_epochs(), 3);
}

TEST(RecipeTest, NullMaxNormMeansNoClipping) {
  EXPECT_EQ(Minimal({"clip_grad_norm.max_norm=null"}).spec.optimizer().max_grad_norm(), 0);
  EXPECT_EQ(Minimal({"clip_grad_norm.max_norm=0.5"}).spec.optimizer().max_grad_norm(), 0.5);
}

TEST(RecipeTest, OptimizerKindFollowsItsName) {
  const auto kind = [](std::vector<std::string> overrides) {
    return Minimal(std::move(overrides)).spec.optimizer().kind();
  };
  EXPECT_EQ(kind({}), v1::OPTIMIZER_KIND_ADAMW);
  EXPECT_EQ(kind({"optimizer._target_=torch.optim.Adam"}), v1::OPTIMIZER_KIND_ADAM);
  EXPECT_EQ(kind({"optimizer._target_=flashoptim.FlashAdamW"}), v1::OPTIMIZER_KIND_ADAMW);
  const std::string fused = "optimizer._target_=transformer_engine.pytorch.optimizers.FusedAdam";
  EXPECT_EQ(kind({fused}), v1::OPTIMIZER_KIND_ADAMW);
  EXPECT_EQ(kind({fused, "optimizer.adam_w_mode=False"}), v1::OPTIMIZER_KIND_ADAM);
}

TEST(RecipeTest, DatasetTargetsBecomeFormats) {
  const auto format = [](const std::string& symbol) {
    return Minimal({"dataset._target_=nemo_automodel.components.datasets.llm.x." + symbol,
                    "dataset.column_mapping={answer: a}"})
        .spec.data()
        .train()
        .format();
  };
  EXPECT_EQ(format("HellaSwag"), v1::DATASET_FORMAT_HELLASWAG);
  EXPECT_EQ(format("make_squad_dataset"), v1::DATASET_FORMAT_SQUAD);
  EXPECT_EQ(format("ChatDataset"), v1::DATASET_FORMAT_CHAT);
  EXPECT_EQ(format("ColumnMappedTextInstructionDataset"), v1::DATASET_FORMAT_COLUMN_MAPPED);
  EXPECT_EQ(format("ColumnMappedTextInstructionIterableDataset"), v1::DATASET_FORMAT_COLUMN_MAPPED);
}

TEST(RecipeTest, PackingStrategiesKeepAutoModelsNames) {
  const auto packing = [](const std::string& strategy) {
    return Minimal({"packed_sequence.packed_sequence_size=64",
                    "packed_sequence.packing_strategy=" + strategy})
        .spec.data()
        .packing();
  };
  EXPECT_EQ(packing("thd"), v1::PACKING_SEQUENTIAL);
  EXPECT_EQ(packing("neat"), v1::PACKING_BEST_FIT);
  EXPECT_EQ(packing("null"), v1::PACKING_BEST_FIT);
  EXPECT_EQ(Minimal().spec.data().packing(), v1::PACKING_NONE);
}

TEST(RecipeTest, ValidationSetsAreToldApartByName) {
  const Recipe recipe = Minimal({"validation_dataset.path_or_dataset=/v.jsonl",
                                 "validation_dataset_math.path_or_dataset=/m.jsonl"});
  EXPECT_THAT(Refused(recipe), ElementsAre());
  ASSERT_EQ(recipe.spec.data().validation_size(), 2);
  EXPECT_EQ(recipe.spec.data().validation(0).name(), "validation");
  EXPECT_EQ(recipe.spec.data().validation(1).name(), "math");
}

TEST(RecipeTest, ValidationStepsWithoutDataAreIgnored) {
  const Recipe without = Minimal({"step_scheduler.val_every_steps=5"});
  EXPECT_EQ(without.spec.batch().val_every_steps(), 0);
  EXPECT_EQ(LineOf(without, "step_scheduler.val_every_steps"),
            "ignored: there is no validation_dataset");
  EXPECT_EQ(Minimal({"step_scheduler.val_every_steps=5", "validation_dataset.paths=/v"})
                .spec.batch()
                .val_every_steps(),
            5);
}

TEST(RecipeTest, RetentionHasAutoModelsDefaultAndNoSettingWithoutEffect) {
  const Recipe plain = Minimal({});
  EXPECT_EQ(plain.spec.checkpoint().keep_last(), 0);
  EXPECT_EQ(plain.spec.checkpoint().keep_best(), 0);
  const Recipe recent = Minimal({"checkpoint.max_recent_checkpoints=3"});
  EXPECT_EQ(recent.spec.checkpoint().keep_last(), 3);
  EXPECT_EQ(recent.spec.checkpoint().keep_best(), 1) << "as LOWEST_VAL";
  const Recipe all = Minimal({"checkpoint.max_recent_checkpoints=3", "checkpoint.keep_best=0",
                              "checkpoint.keep_every_steps=50"});
  EXPECT_EQ(all.spec.checkpoint().keep_best(), 0);
  EXPECT_EQ(all.spec.checkpoint().keep_every_steps(), 50);
  EXPECT_THAT(LineOf(Minimal({"checkpoint.keep_best=2"}), "checkpoint.keep_best"),
              HasSubstr("all are kept"));
  EXPECT_THAT(LineOf(Minimal({"checkpoint.keep_every_step=5"}), "checkpoint.keep_every_step"),
              HasSubstr("did you mean"));
}

TEST(RecipeTest, DisabledCheckpointsLeaveTheFinalWeights) {
  const Recipe recipe = Minimal({"checkpoint.enabled=false", "step_scheduler.ckpt_every_steps=5"});
  EXPECT_EQ(recipe.spec.checkpoint().every_steps(), 0);
  EXPECT_FALSE(recipe.spec.checkpoint().every_epoch());
  EXPECT_FALSE(recipe.spec.checkpoint().save_optimizer());
  EXPECT_THAT(LineOf(recipe, "step_scheduler.ckpt_every_steps"), HasSubstr("ignored"));
}

TEST(RecipeTest, RelativePathsStartAtTheRecipe) {
  const Recipe recipe =
      Minimal({"dataset.path_or_dataset_id=[./x.jsonl, sub/y.parquet, ../z.jsonl]",
               "model.pretrained_model_name_or_path=local/model"});
  EXPECT_THAT(recipe.spec.data().train().paths(),
              ElementsAre("/recipes/x.jsonl", "/recipes/sub/y.parquet", "/z.jsonl"));
  EXPECT_EQ(recipe.spec.model().path(), "/recipes/local/model");
}

TEST(RecipeTest, ScalarsAreRetypedAsAutoModelDoes) {
  const Recipe recipe = Minimal({"optimizer.eps=\"1e-8\"", "dataloader.shuffle=\"False\"",
                                 "distributed.dp_size=\"None\"", "optimizer.weight_decay=0"});
  EXPECT_THAT(Refused(recipe), ElementsAre());
  EXPECT_EQ(recipe.spec.optimizer().eps(), 1e-8);
  EXPECT_FALSE(recipe.spec.data().shuffle());
  EXPECT_EQ(recipe.spec.optimizer().weight_decay(), 0);
}

// --- overrides and the environment --------------------------------------------------------------

TEST(RecipeTest, OverridesReplaceAddAndMakeSections) {
  const Recipe recipe = Minimal({"step_scheduler.max_steps=5", "step_scheduler.max_steps=6",
                                 "job.labels={team: a}", "job.labels.stage=b"});
  EXPECT_EQ(recipe.spec.batch().max_steps(), 6);
  EXPECT_EQ(recipe.labels, (std::map<std::string, std::string>{{"team", "a"}, {"stage", "b"}}));
}

TEST(RecipeTest, OverridesWithoutShapeAreErrors) {
  EXPECT_THAT(Read(kMinimal, {"step_scheduler.max_steps"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected a.b=value")));
  EXPECT_THAT(Read(kMinimal, {"a..b=1"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("an empty key")));
  EXPECT_THAT(Read(kMinimal, {"optimizer.lr.x=1"}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("optimizer.lr is no section but '1e-4'")));
  EXPECT_THAT(Read(kMinimal, {"optimizer.betas=[1"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--set optimizer.betas")));
}

TEST(RecipeTest, EnvironmentIsInterpolated) {
  absl::StatusOr<Recipe> recipe = Read(R"(
step_scheduler: {global_batch_size: 8, local_batch_size: 2, max_steps: $STEPS}
model: {pretrained_model_name_or_path: "${MODELS}/m"}
dataset: {path_or_dataset_id: "${DATA,/data}/d$$1.jsonl"}
optimizer: {lr: "${LR,1e-3}"}
)");
  ASSERT_THAT(recipe, IsOk());
  EXPECT_THAT(Refused(*recipe), ElementsAre());
  EXPECT_EQ(recipe->spec.batch().max_steps(), 12);
  EXPECT_EQ(recipe->spec.model().path(), "/models/m");
  EXPECT_THAT(recipe->spec.data().train().paths(), ElementsAre("/data/d$1.jsonl"));
  EXPECT_EQ(recipe->spec.optimizer().lr(), 1e-3);
}

TEST(RecipeTest, UnsetVariableIsAnErrorWithItsLine) {
  EXPECT_THAT(Read("a: 1\nmodel: {pretrained_model_name_or_path: \"${NOPE}/m\"}\n"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("recipe.yaml:2: environment variable NOPE is not set")));
  EXPECT_THAT(Read("a: ${MODELS\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no closing brace")));
}

// --- refusals -----------------------------------------------------------------------------------

struct RefusalCase {
  const char* override_text;
  const char* key;
  const char* note;  // a part of it
};

class RefusalTest : public testing::TestWithParam<RefusalCase> {};

TEST_P(RefusalTest, NamesTheKeyAndTheReason) {
  const Recipe recipe = Minimal({GetParam().override_text});
  EXPECT_THAT(LineOf(recipe, GetParam().key),
              testing::AllOf(testing::StartsWith("refused: "), HasSubstr(GetParam().note)));
  EXPECT_GE(recipe.num_refused(), 1);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RefusalTest,
    testing::Values(
        RefusalCase{"step_scheduler.max_step=5", "step_scheduler.max_step",
                    "unknown key: did you mean step_scheduler.max_steps?"},
        RefusalCase{"optimzer.lr=1", "optimzer.lr", "unknown key: did you mean optimizer.lr?"},
        RefusalCase{"max_steps=5", "max_steps", "did you mean step_scheduler.max_steps?"},
        RefusalCase{"validation_dataset.splt=x", "validation_dataset.splt",
                    "did you mean validation_dataset.split?"},
        RefusalCase{"zzzzzz=5", "zzzzzz", "unknown key"},
        RefusalCase{"step_scheduler=5", "step_scheduler", "expected a section, found '5'"},
        RefusalCase{"step_scheduler.max_steps=many", "step_scheduler.max_steps",
                    "expected an integer, found 'many'"},
        RefusalCase{"step_scheduler.max_steps=2.5", "step_scheduler.max_steps",
                    "expected an integer, found '2.5'"},
        RefusalCase{"step_scheduler.max_steps=[1]", "step_scheduler.max_steps",
                    "expected a single value, found a list"},
        RefusalCase{"step_scheduler.max_steps=0", "step_scheduler.max_steps",
                    "0 is outside 1 to 1000000000"},
        RefusalCase{"seed=4294967296", "seed", "4294967296 is outside 0 to 4294967295"},
        RefusalCase{"dataloader.shuffle=maybe", "dataloader.shuffle",
                    "expected true or false, found 'maybe'"},
        RefusalCase{"optimizer.lr=fast", "optimizer.lr", "expected a number, found 'fast'"},
        RefusalCase{"optimizer.lr=nan", "optimizer.lr", "expected a number, found 'nan'"},
        RefusalCase{"optimizer.lr=0", "optimizer.lr", "0 would train nothing"},
        RefusalCase{"optimizer.lr=-1", "optimizer.lr", "-1 is outside 0 to 10"},
        RefusalCase{"optimizer.betas=[0.9]", "optimizer.betas", "expected 2 numbers, found 1"},
        RefusalCase{"optimizer.betas=[0.9, 1]", "optimizer.betas", "1 is outside [0, 1)"},
        RefusalCase{"optimizer.betas=0.9", "optimizer.betas", "expected a list of numbers"},
        RefusalCase{"optimizer.amsgrad=true", "optimizer.amsgrad", "AMSGrad is not there"},
        RefusalCase{"optimizer.adam_w_mode=true", "optimizer.adam_w_mode", "only FusedAdam has it"},
        RefusalCase{"optimizer._target_=torch.optim.AdamWW", "optimizer._target_",
                    "did you mean AdamW?"},
        RefusalCase{"optimizer._target_=os.system", "optimizer._target_",
                    "nothing is imported from a recipe"},
        RefusalCase{"optimizer._target_=evil.AdamW", "optimizer._target_", "not in the table"},
        RefusalCase{"optimizer._target_=torch.optim.SGD", "optimizer._target_",
                    "only Adam and AdamW are there yet"},
        RefusalCase{"dataset._target_=nemo_automodel.components.datasets.llm.ChatDatset",
                    "dataset._target_", "did you mean ChatDataset?"},
        RefusalCase{"peft.dim=8", "peft.dim", "LoRA comes with a later version"},
        RefusalCase{"fp8.enabled=true", "fp8.enabled", "fp8 comes with a later version"},
        RefusalCase{"distributed.tp_size=2", "distributed.tp_size", "2: only 1 is there yet"},
        RefusalCase{"distributed.pp_size=4", "distributed.pp_size", "4: only 1 is there yet"},
        RefusalCase{
            "distributed.strategy=fsdp3", "distributed.strategy",
            "expected one of fsdp2, ddp, megatron_fsdp, found 'fsdp3': did you mean fsdp2?"},
        RefusalCase{"distributed.dp_size=3", "step_scheduler.global_batch_size",
                    "8 is not a multiple of local_batch_size 2 x num_ranks 3 = 6"},
        RefusalCase{"model.pretrained_model_name_or_path=Qwen/Qwen3-30B-A3B",
                    "model.pretrained_model_name_or_path", "download it and give the path"},
        RefusalCase{"dataset.path_or_dataset_id=rowan/hellaswag", "dataset.path_or_dataset_id",
                    "a Hugging Face id is not resolved"},
        RefusalCase{"dataset.path_or_dataset_id=https://x.org/a.jsonl",
                    "dataset.path_or_dataset_id", "nothing is downloaded"},
        RefusalCase{"dataset.path_or_dataset_id=~/a.jsonl", "dataset.path_or_dataset_id",
                    "~ is not expanded"},
        RefusalCase{"dataset.path_or_dataset=/x", "dataset.path_or_dataset_id", "given twice"},
        RefusalCase{"dataset.column_mapping={answer: a}", "dataset.column_mapping",
                    "only column-mapped data has one"},
        RefusalCase{"dataset.format=column_mapped", "dataset.column_mapping", "at least `answer`"},
        RefusalCase{"dataset.column_mapping={reply: a}", "dataset.column_mapping",
                    "'reply' is none of context, question, answer"},
        RefusalCase{"dataset.chat_template=nope.jinja", "dataset.chat_template",
                    "no file /recipes/nope.jinja"},
        RefusalCase{"dataset.truncation=sometimes", "dataset.truncation", "found 'sometimes'"},
        RefusalCase{"dataset.mask_reasoning_content=true", "dataset.mask_reasoning_content",
                    "not there yet"},
        RefusalCase{"dataset.tokenizer={pretrained_model_name_or_path: /other}",
                    "dataset.tokenizer.pretrained_model_name_or_path",
                    "/other is not the model folder /models/m"},
        RefusalCase{"packed_sequence.split_across_pack=true", "packed_sequence.split_across_pack",
                    "a document is never split"},
        RefusalCase{"packed_sequence.packed_sequence_size=1",
                    "packed_sequence.packed_sequence_size", "1 is outside 2 to 16777216"},
        RefusalCase{"optimizer.eps=0", "optimizer.eps", "0 is outside 1e-30 to 1"},
        RefusalCase{"checkpoint.restore_from=LATEST", "checkpoint.restore_from",
                    "resumes from the latest by itself"},
        RefusalCase{"lr_scheduler.lr_decay_style=WSD", "lr_scheduler.wsd_decay_steps",
                    "required with WSD"},
        RefusalCase{"lr_scheduler.lr_warmup_steps=100", "lr_scheduler.lr_warmup_steps",
                    "100 is not below max_steps = 100"},
        RefusalCase{"lr_scheduler.min_lr=1", "lr_scheduler.min_lr",
                    "1 is above optimizer.lr = 0.0001"},
        RefusalCase{"lr_scheduler.end_wd=0.5", "lr_scheduler.end_wd",
                    "0.5 is not optimizer.weight_decay = 0.01"},
        RefusalCase{"loss_fn.ignore_index=0", "loss_fn.ignore_index", "masked labels are -100"},
        RefusalCase{"optimizer={}", "optimizer.lr", "required"},
        RefusalCase{"model={}", "model.pretrained_model_name_or_path", "required"},
        RefusalCase{"dataset={}", "dataset.path_or_dataset_id", "required"},
        RefusalCase{"step_scheduler={}", "step_scheduler.local_batch_size", "required"}),
    [](const auto& info) { return absl::StrCat("Case", info.index); });

TEST(RecipeTest, RulesOverSeveralKeysNameBothNumbers) {
  EXPECT_THAT(Refused(Minimal({"distributed.ep_size=3", "resources.num_ranks=4"})),
              Contains("distributed.ep_size: 3 does not divide 4 ranks (num_ranks 4)"));
  EXPECT_THAT(Refused(Minimal({"distributed.dp_replicate_size=3", "resources.num_ranks=4"})),
              Contains("distributed.dp_replicate_size: 3 does not divide resources.num_ranks = 4"));
  EXPECT_THAT(
      Refused(Minimal({"packed_sequence.packed_sequence_size=64", "dataset.seq_length=128"})),
      Contains(HasSubstr("64 is below dataset.seq_length = 128")));
  EXPECT_THAT(
      Refused(Minimal({"dataset.seq_length=64", "validation_dataset.seq_length=32",
                       "validation_dataset.paths=[/v]"})),
      Contains(HasSubstr("validation_dataset.seq_length: 32, but another data set says 64")));
  EXPECT_THAT(
      Refused(Minimal({"optimizer.exp_avg_dtype=bfloat16", "optimizer.exp_avg_sq_dtype=float32"})),
      Contains(HasSubstr("float32, but exp_avg_dtype is bfloat16")));
}

TEST(RecipeTest, SwitchedOffSectionsAreIgnoredNotRefused) {
  const Recipe recipe = Minimal({"fp8.enabled=false", "fp8.recipe_name=x", "peft=null"});
  EXPECT_THAT(Refused(recipe), ElementsAre());
  EXPECT_EQ(LineOf(recipe, "fp8.recipe_name"), "ignored: switched off");
  EXPECT_THAT(LineOf(recipe, "peft"), HasSubstr("ignored: null"));
}

TEST(RecipeTest, MissingFilesAreNamedAtTheirKeys) {
  Recipe recipe = Minimal({"model.pretrained_model_name_or_path=/no/such/model",
                           "dataset.path_or_dataset_id=/no/such/data.jsonl",
                           "validation_dataset.path_or_dataset=/no/such/*.jsonl",
                           "checkpoint.restore_from=/no/such/step-3"});
  EXPECT_THAT(Refused(recipe), ElementsAre());
  RefuseMissingFiles(recipe);
  EXPECT_THAT(Refused(recipe),
              testing::UnorderedElementsAre(
                  "model.pretrained_model_name_or_path: there is no /no/such/model",
                  "dataset.path_or_dataset_id: there is no /no/such/data.jsonl",
                  "validation_dataset.path_or_dataset: there is no /no/such",
                  "checkpoint.restore_from: there is no folder /no/such/step-3"));
}

TEST(RecipeTest, AModelFolderNeedsConfigTokenizerAndWeights) {
  const std::string folder = testing::TempDir() + "/recipe_test_model";
  ASSERT_THAT(MakeFolders(folder), IsOk());
  const std::vector<std::string> set = {"model.pretrained_model_name_or_path=" + folder,
                                        "dataset.path_or_dataset_id=" + folder};
  const auto fault = [&] {
    Recipe recipe = Minimal(set);
    RefuseMissingFiles(recipe);
    return LineOf(recipe, "model.pretrained_model_name_or_path");
  };
  EXPECT_THAT(fault(), HasSubstr("there is no config.json in"));
  ASSERT_THAT(ReplaceFile(folder + "/config.json", "{}"), IsOk());
  EXPECT_THAT(fault(), HasSubstr("there is no tokenizer.json in"));
  ASSERT_THAT(ReplaceFile(folder + "/tokenizer.json", "{}"), IsOk());
  EXPECT_THAT(fault(), HasSubstr("there is no *.safetensors in"));
  ASSERT_THAT(ReplaceFile(folder + "/model.safetensors", ""), IsOk());
  EXPECT_THAT(fault(), HasSubstr("used: = "));
  for (const char* file : {"/config.json", "/tokenizer.json", "/model.safetensors"}) {
    std::remove((folder + file).c_str());
  }
}

}  // namespace
}  // namespace switchyard
