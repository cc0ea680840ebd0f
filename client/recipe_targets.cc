#include "client/recipe_targets.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/edit_distance.h"

namespace switchyard {
namespace {

constexpr char kNemo[] = "nemo_automodel";
constexpr char kLoss[] = "the mean over all supervised tokens of the step";
constexpr char kCollate[] = "padding and packing are the loader's work";
constexpr char kLaterData[] = "this data set is not read yet; convert it to JSONL or parquet";
constexpr char kLaterOptimizer[] = "only Adam and AdamW are there yet";
constexpr char kOtherRecipe[] = "only next-token fine-tuning is there";

}  // namespace

const std::vector<RecipeTarget>& RecipeTargets() {
  static const auto& targets = *new std::vector<RecipeTarget>{
      {"recipe", kNemo, "TrainFinetuneRecipeForNextTokenPrediction", nullptr, "fine-tuning"},
      {"recipe", kNemo, "KnowledgeDistillationRecipeForNextTokenPrediction", kOtherRecipe, ""},
      {"recipe", kNemo, "TrainFinetuneRecipeForSequenceClassification", kOtherRecipe, ""},
      {"recipe", kNemo, "FinetuneRecipeForVLM", kOtherRecipe, ""},
      {"recipe", kNemo, "BenchmarkingRecipeForNextTokenPrediction", kOtherRecipe, ""},
      {"rng._target_", kNemo, "StatefulRNG", nullptr, "every draw comes from the seed"},
      {"model._target_", kNemo, "NeMoAutoModelForCausalLM.from_pretrained", nullptr,
       "weights from safetensors"},
      {"model._target_", kNemo, "NeMoAutoModelForCausalLM.from_config", nullptr,
       "fresh weights from config.json"},
      {"model._target_", kNemo, "NeMoAutoModelForImageTextToText.from_pretrained",
       "only text models are there", ""},
      {"model._target_", kNemo, "NeMoAutoModelForSequenceClassification.from_pretrained",
       "only causal language models are there", ""},
      {"model.config._target_", "transformers", "AutoConfig.from_pretrained", nullptr,
       "config.json of the folder"},
      {"model.backend._target_", kNemo, "BackendConfig", nullptr, "our own kernels"},
      {"loss_fn._target_", kNemo, "MaskedCrossEntropy", nullptr, kLoss},
      {"loss_fn._target_", kNemo, "FusedLinearCrossEntropy", nullptr, kLoss},
      {"loss_fn._target_", kNemo, "ChunkedCrossEntropy", nullptr, kLoss},
      {"loss_fn._target_", kNemo, "TEParallelCrossEntropy", nullptr, kLoss},
      {"loss_fn._target_", kNemo, "KDLoss", "knowledge distillation is not there", ""},
      {"dataset._target_", kNemo, "HellaSwag", nullptr, "ctx + endings[label]"},
      {"dataset._target_", kNemo, "make_squad_dataset", nullptr, "context, question, answers"},
      {"dataset._target_", kNemo, "ChatDataset", nullptr, "messages or conversations"},
      {"dataset._target_", kNemo, "ColumnMappedTextInstructionDataset", nullptr,
       "any columns, by column_mapping"},
      {"dataset._target_", kNemo, "ColumnMappedTextInstructionIterableDataset", nullptr,
       "read whole, not streamed"},
      {"dataset._target_", kNemo, "MockIterableDataset", kLaterData, ""},
      {"dataset._target_", kNemo, "NanogptDataset", kLaterData, ""},
      {"dataset._target_", kNemo, "MegatronPretraining", kLaterData, ""},
      {"dataset.tokenizer._target_", kNemo, "NeMoAutoTokenizer.from_pretrained", nullptr,
       "the model folder's tokenizer"},
      {"dataset.tokenizer._target_", "transformers", "AutoTokenizer.from_pretrained", nullptr,
       "the model folder's tokenizer"},
      {"dataloader._target_", "torchdata", "StatefulDataLoader", nullptr, "our loader"},
      {"dataloader.collate_fn", kNemo, "default_collater", nullptr, kCollate},
      {"dataloader.collate_fn", kNemo, "packed_sequence_thd_collater", nullptr, kCollate},
      {"dataloader.collate_fn", kNemo, "neat_packed_collater", nullptr, kCollate},
      {"optimizer._target_", "torch", "Adam", nullptr, "weight decay as L2"},
      {"optimizer._target_", "torch", "AdamW", nullptr, "decoupled weight decay"},
      {"optimizer._target_", "transformer_engine", "FusedAdam", nullptr,
       "decoupled weight decay unless adam_w_mode is false"},
      {"optimizer._target_", "flashoptim", "FlashAdamW", nullptr, "decoupled weight decay"},
      {"optimizer._target_", "torch", "SGD", kLaterOptimizer, ""},
      {"optimizer._target_", "torch", "Muon", kLaterOptimizer, ""},
      {"optimizer._target_", "dion", "Muon", kLaterOptimizer, ""},
      {"optimizer._target_", "dion", "NorMuon", kLaterOptimizer, ""},
      {"optimizer._target_", "dion", "Dion", kLaterOptimizer, ""},
      {"optimizer._target_", "dion", "Dion2", kLaterOptimizer, ""},
  };
  return targets;
}

const RecipeTarget* FindTarget(absl::string_view key, absl::string_view name,
                               std::string& suggestion) {
  std::vector<std::string> symbols;
  for (const RecipeTarget& target : RecipeTargets()) {
    if (key != target.key) continue;
    if (name == target.symbol || (absl::StartsWith(name, absl::StrCat(target.package, ".")) &&
                                  absl::EndsWith(name, absl::StrCat(".", target.symbol)))) {
      return &target;
    }
    if (target.refused == nullptr) symbols.push_back(target.symbol);
  }
  // Only the last parts are compared: the modules in front would drown a typo.
  for (size_t dot = 0; dot != absl::string_view::npos && suggestion.empty();
       dot = name.find('.', dot + 1)) {
    suggestion = Nearest(name.substr(dot == 0 ? 0 : dot + 1), symbols);
  }
  return nullptr;
}

}  // namespace switchyard
