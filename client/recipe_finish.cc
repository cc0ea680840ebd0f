// What no single key decides: defaults, rules over several keys, and what is missing.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/recipe_keys.h"

namespace switchyard {
namespace {

constexpr int kDefaultSeqLength = 2048;
constexpr int kDefaultEpochs = 10;
constexpr uint32_t kDefaultSeed = 42;

ReportLine* FindLine(RecipeDraft& draft, const std::string& key) {
  for (ReportLine& line : draft.recipe.report) {
    if (line.key == key) return &line;
  }
  return nullptr;
}

void FinishSchedule(RecipeDraft& draft) {
  v1::JobSpec& spec = draft.spec;
  if (draft.Given("seed")) {
    if (draft.rng_seed.has_value()) {
      draft.Ignore("rng.seed", absl::StrCat("`seed` is there and holds: ", spec.seed()));
    }
  } else if (draft.rng_seed.has_value()) {
    spec.set_seed(*draft.rng_seed);
    FindLine(draft, "rng.seed")->note =
        absl::StrCat("= ", spec.seed(), ", for want of `seed` (AutoModel would take 42)");
  } else {
    spec.set_seed(kDefaultSeed);
    draft.Default("seed", absl::StrCat(kDefaultSeed));
  }

  v1::BatchSpec& batch = *spec.mutable_batch();
  for (const char* key : {"step_scheduler.global_batch_size", "step_scheduler.local_batch_size"}) {
    if (!draft.Given(key) && FindLine(draft, key) == nullptr) draft.Refuse(key, "required");
  }
  if (batch.max_steps() == 0 && batch.num_epochs() == 0) {
    batch.set_num_epochs(kDefaultEpochs);
    draft.Default("step_scheduler.num_epochs", absl::StrCat(kDefaultEpochs));
  } else if (batch.num_epochs() == 0) {
    draft.Default("step_scheduler.num_epochs",
                  absl::StrCat("as many as ", batch.max_steps(), " steps need"));
  }

  if (spec.data().validation().empty() && batch.val_every_steps() > 0) {
    batch.set_val_every_steps(0);
    draft.Ignore("step_scheduler.val_every_steps", "there is no validation_dataset");
  }

  if (!draft.Given("job.max_retries")) {
    spec.mutable_retry()->set_max_retries(20);
    draft.Default("job.max_retries", "20, given back by each newer checkpoint");
  }

  v1::CheckpointSpec& checkpoint = *spec.mutable_checkpoint();
  if (!draft.Given("checkpoint.save_optimizer")) checkpoint.set_save_optimizer(true);
  if (draft.Given("checkpoint.max_recent_checkpoints")) {
    // AutoModel spares the one that LOWEST_VAL points to.
    if (!draft.Given("checkpoint.keep_best")) {
      checkpoint.set_keep_best(1);
      draft.Default("checkpoint.keep_best", "1");
    }
  } else {
    for (const char* key : {"checkpoint.keep_best", "checkpoint.keep_every_steps"}) {
      if (draft.Given(key)) {
        draft.Refuse(key, "without checkpoint.max_recent_checkpoints all are kept");
      }
    }
  }
  if (draft.checkpoints_off) {
    checkpoint.set_every_steps(0);
    checkpoint.set_every_epoch(false);
    checkpoint.set_save_optimizer(false);
    for (const char* key :
         {"step_scheduler.ckpt_every_steps", "step_scheduler.save_checkpoint_every_epoch",
          "checkpoint.save_optimizer"}) {
      if (draft.Given(key))
        draft.Ignore(key, "checkpoint.enabled is false: only the final weights");
    }
  } else if (checkpoint.every_steps() == 0 &&
             !draft.Given("step_scheduler.save_checkpoint_every_epoch")) {
    checkpoint.set_every_epoch(true);
    draft.Default("step_scheduler.save_checkpoint_every_epoch", "true, without ckpt_every_steps");
  }
}

void FinishModel(RecipeDraft& draft) {
  v1::ModelSpec& model = *draft.spec.mutable_model();
  const std::string key = "model.pretrained_model_name_or_path";
  if (model.path().empty() && FindLine(draft, key) == nullptr &&
      FindLine(draft, "model.config") == nullptr &&
      FindLine(draft, "model.config.pretrained_model_name_or_path") == nullptr) {
    draft.Refuse(key, "required: the folder of the model");
  }
  if (model.dtype().empty()) {
    model.set_dtype("bfloat16");
    draft.Default("model.torch_dtype", "bfloat16");
  }
  if (model.aux_loss() == v1::AUX_LOSS_OFF && model.aux_loss_coef() != 0) {
    draft.Refuse("model.aux_loss_coef",
                 absl::StrCat(model.aux_loss_coef(), ", but model.aux_loss is off"));
  }
  for (const auto& [tokenizer_key, path] : draft.tokenizers) {
    if (path != model.path()) {
      draft.Refuse(tokenizer_key, absl::StrCat(path, " is not the model folder ", model.path(),
                                               ": the tokenizer is always the model's"));
    }
  }
}

void FinishParallel(RecipeDraft& draft) {
  v1::JobSpec& spec = draft.spec;
  v1::ParallelSpec& parallel = *spec.mutable_parallel();
  if (parallel.ep_size() == 0) {
    parallel.set_ep_size(1);
    draft.Default("distributed.ep_size", "1");
  }
  if (parallel.dp_replicate_size() == 0) parallel.set_dp_replicate_size(1);
  if (parallel.num_ranks() == 0) {
    parallel.set_num_ranks(
        static_cast<int32_t>(std::max<int64_t>(draft.dp_size, parallel.ep_size())));
    draft.Default("resources.num_ranks", absl::StrCat(parallel.num_ranks()));
  }
  const int ranks = parallel.num_ranks();
  const int ep = parallel.ep_size();
  const int replicas = parallel.dp_replicate_size();
  if (draft.dp_size != 0 && draft.dp_size != ranks) {
    draft.Refuse("distributed.dp_size",
                 absl::StrCat(draft.dp_size, " is not resources.num_ranks = ", ranks,
                              "; leave it out, or write none"));
  }
  if (ranks % replicas != 0) {
    draft.Refuse("distributed.dp_replicate_size",
                 absl::StrCat(replicas, " does not divide resources.num_ranks = ", ranks));
  } else if ((ranks / replicas) % ep != 0) {
    draft.Refuse(
        "distributed.ep_size",
        absl::StrCat(ep, " does not divide ", ranks / replicas, " ranks (num_ranks ", ranks,
                     replicas > 1 ? absl::StrCat(" / dp_replicate_size ", replicas) : "", ")"));
  }
  const v1::BatchSpec& batch = spec.batch();
  const int64_t rows = int64_t{batch.local_batch_size()} * ranks;
  if (rows > 0 && batch.global_batch_size() > 0 && batch.global_batch_size() % rows != 0) {
    draft.Refuse("step_scheduler.global_batch_size",
                 absl::StrCat(batch.global_batch_size(), " is not a multiple of local_batch_size ",
                              batch.local_batch_size(), " x num_ranks ", ranks, " = ", rows));
  }
}

void FinishOptimizer(RecipeDraft& draft) {
  v1::OptimizerSpec& optimizer = *draft.spec.mutable_optimizer();
  const bool coupled =
      draft.optimizer == "Adam" || (draft.optimizer == "FusedAdam" && !draft.adam_w_mode);
  optimizer.set_kind(coupled ? v1::OPTIMIZER_KIND_ADAM : v1::OPTIMIZER_KIND_ADAMW);
  if (draft.Given("optimizer.adam_w_mode") && draft.optimizer != "FusedAdam") {
    draft.Refuse("optimizer.adam_w_mode",
                 absl::StrCat("only FusedAdam has it; this is ", draft.optimizer));
  }
  if (!draft.Given("optimizer._target_") && FindLine(draft, "optimizer._target_") == nullptr) {
    draft.Default("optimizer._target_", "torch.optim.AdamW");
  }
  if (FindLine(draft, "optimizer.lr") == nullptr) {
    draft.Refuse("optimizer.lr", "required; 1e-5 to 1e-4 are usual for fine-tuning");
  } else if (draft.Given("optimizer.lr") && optimizer.lr() <= 0) {
    draft.Refuse("optimizer.lr", "0 would train nothing");
  }
  if (!draft.Given("optimizer.betas")) {
    optimizer.set_beta1(0.9);
    optimizer.set_beta2(0.999);
  }
  if (!draft.Given("optimizer.eps")) optimizer.set_eps(1e-8);
  if (!draft.Given("optimizer.weight_decay")) {
    const bool decays = draft.optimizer == "AdamW" || draft.optimizer == "FlashAdamW";
    optimizer.set_weight_decay(decays ? 0.01 : 0);
    draft.Default("optimizer.weight_decay", decays ? "0.01" : "0");
  }
  if (!draft.Given("clip_grad_norm.max_norm")) {
    optimizer.set_max_grad_norm(1.0);
    draft.Default("clip_grad_norm.max_norm", "1.0");
  }
  if (optimizer.moment_dtype().empty()) optimizer.set_moment_dtype("float32");
  if (draft.moment_dtypes.size() == 2) {
    const std::string& first = draft.moment_dtypes["optimizer.exp_avg_dtype"];
    const std::string& second = draft.moment_dtypes["optimizer.exp_avg_sq_dtype"];
    if (first != second) {
      draft.Refuse("optimizer.exp_avg_sq_dtype",
                   absl::StrCat(second, ", but exp_avg_dtype is ", first, ": both are kept alike"));
    }
  }
  for (const auto& [key, decay] : draft.start_end_weight_decay) {
    if (decay != optimizer.weight_decay()) {
      draft.Refuse(
          key, absl::StrCat(decay, " is not optimizer.weight_decay = ", optimizer.weight_decay(),
                            ": schedules of the weight decay are "
                            "not there yet"));
    }
  }
}

void FinishLrSchedule(RecipeDraft& draft) {
  v1::LrScheduleSpec& schedule = *draft.spec.mutable_lr_schedule();
  const double lr = draft.spec.optimizer().lr();
  bool present = false;
  for (const auto& [key, node] : draft.given) present |= absl::StartsWith(key, "lr_scheduler.");
  if (!present) {
    schedule.set_decay(v1::LR_DECAY_CONSTANT);
    draft.Default("lr_scheduler", "constant rate, no warm-up");
    return;
  }
  if (schedule.decay() == v1::LR_DECAY_UNSPECIFIED) {
    schedule.set_decay(v1::LR_DECAY_COSINE);
    if (FindLine(draft, "lr_scheduler.lr_decay_style") == nullptr) {
      draft.Default("lr_scheduler.lr_decay_style", "cosine");
    }
  }
  const int64_t max_steps = draft.spec.batch().max_steps();
  if (!draft.Given("lr_scheduler.lr_warmup_steps")) {
    schedule.set_warmup_steps(std::min<int64_t>(1000, max_steps / 10));
    draft.Default("lr_scheduler.lr_warmup_steps",
                  max_steps > 0 ? absl::StrCat(schedule.warmup_steps(),
                                               ": a tenth of max_steps, at most 1000")
                                : "0: a tenth of the steps is not known without max_steps");
  }
  if (!draft.Given("lr_scheduler.min_lr")) {
    schedule.set_min_lr(0.01 * lr);
    draft.Default("lr_scheduler.min_lr", absl::StrCat(schedule.min_lr(), " (0.01 lr)"));
  } else if (schedule.min_lr() > lr) {
    draft.Refuse("lr_scheduler.min_lr",
                 absl::StrCat(schedule.min_lr(), " is above optimizer.lr = ", lr));
  }
  if (!draft.Given("lr_scheduler.init_lr")) {
    schedule.set_init_lr(0.1 * lr);
    draft.Default("lr_scheduler.init_lr", absl::StrCat(schedule.init_lr(), " (0.1 lr)"));
  } else if (schedule.init_lr() > lr) {
    draft.Refuse("lr_scheduler.init_lr",
                 absl::StrCat(schedule.init_lr(), " is above optimizer.lr = ", lr));
  }
  const int64_t decay_steps = schedule.decay_steps() > 0 ? schedule.decay_steps() : max_steps;
  const char* decay_name = schedule.decay_steps() > 0 ? "lr_decay_steps" : "max_steps";
  if (decay_steps > 0 && schedule.decay() != v1::LR_DECAY_CONSTANT &&
      schedule.warmup_steps() >= decay_steps) {
    draft.Refuse(
        "lr_scheduler.lr_warmup_steps",
        absl::StrCat(schedule.warmup_steps(), " is not below ", decay_name, " = ", decay_steps));
  }
  if (schedule.decay() == v1::LR_DECAY_WSD) {
    if (schedule.wsd_tail() == v1::WSD_TAIL_UNSPECIFIED) {
      schedule.set_wsd_tail(v1::WSD_TAIL_EXPONENTIAL);
    }
    if (!draft.Given("lr_scheduler.wsd_decay_steps")) {
      if (FindLine(draft, "lr_scheduler.wsd_decay_steps") == nullptr) {
        draft.Refuse("lr_scheduler.wsd_decay_steps", "required with WSD");
      }
    } else if (decay_steps > 0 &&
               schedule.wsd_decay_steps() > decay_steps - schedule.warmup_steps()) {
      draft.Refuse("lr_scheduler.wsd_decay_steps",
                   absl::StrCat(schedule.wsd_decay_steps(), " is more than ", decay_name, " ",
                                decay_steps, " - lr_warmup_steps ", schedule.warmup_steps(), " = ",
                                decay_steps - schedule.warmup_steps()));
    }
  } else {
    for (const char* key : {"lr_scheduler.wsd_decay_steps", "lr_scheduler.lr_wsd_decay_style"}) {
      if (draft.Given(key)) draft.Ignore(key, "lr_decay_style is not WSD");
    }
    schedule.clear_wsd_decay_steps();
    schedule.clear_wsd_tail();
  }
}

// One data set's own rules; `section` as in the file.
void FinishDataset(RecipeDraft& draft, const std::string& section, v1::DatasetSpec& data) {
  const auto key = [&](const char* leaf) { return absl::StrCat(section, ".", leaf); };
  int named = 0;
  bool tried = false;
  for (const char* leaf : {"path_or_dataset", "path_or_dataset_id", "dataset_name", "paths"}) {
    tried |= FindLine(draft, key(leaf)) != nullptr;
    if (draft.Given(key(leaf)) && ++named == 2) {
      draft.Refuse(key(leaf), "the data's path is given twice");
    }
  }
  if (!tried) {
    const char* leaf = data.format() == v1::DATASET_FORMAT_HELLASWAG ? "path_or_dataset"
                       : data.format() == v1::DATASET_FORMAT_SQUAD   ? "dataset_name"
                                                                     : "path_or_dataset_id";
    draft.Refuse(key(leaf), "required: the data's path");
  }
  if (draft.Given(key("format")) && draft.Given(key("_target_"))) {
    draft.Refuse(key("format"), "_target_ is there and says it");
  }
  if (data.format() == v1::DATASET_FORMAT_COLUMN_MAPPED) {
    if (data.loss_mask() == v1::LOSS_MASK_UNSPECIFIED) data.set_loss_mask(v1::LOSS_MASK_COMPLETION);
    if (data.column_mapping().count("answer") == 0) {
      draft.Refuse(key("column_mapping"),
                   "required for column-mapped data, with at least `answer`");
    }
  } else if (data.column_mapping_size() > 0) {
    draft.Refuse(key("column_mapping"), "only column-mapped data has one");
  }
  const bool text_rows = data.format() == v1::DATASET_FORMAT_COLUMN_MAPPED ||
                         data.format() == v1::DATASET_FORMAT_SQUAD;
  // Chats are rendered by a template anyway.
  if (!text_rows && !draft.Given(key("use_hf_chat_template"))) data.set_use_chat_template(false);
}

void FinishData(RecipeDraft& draft) {
  v1::DataSpec& data = *draft.spec.mutable_data();
  FinishDataset(draft, "dataset", *data.mutable_train());
  for (v1::DatasetSpec& validation : *data.mutable_validation()) {
    FinishDataset(draft,
                  validation.name() == "validation" &&
                          draft.recipe.report.end() !=
                              std::find_if(draft.recipe.report.begin(), draft.recipe.report.end(),
                                           [](const ReportLine& line) {
                                             return absl::StartsWith(line.key,
                                                                     "validation_dataset.");
                                           })
                      ? "validation_dataset"
                      : absl::StrCat("validation_dataset_", validation.name()),
                  validation);
  }

  // One length and one template for the job.
  for (const auto& [key, value] : draft.seq_lengths) {  // "dataset." sorts before "validation_"
    if (data.seq_length() == 0) {
      data.set_seq_length(static_cast<int32_t>(value));
    } else if (value != data.seq_length()) {
      draft.Refuse(key, absl::StrCat(value, ", but another data set says ", data.seq_length(),
                                     ": a job has one length"));
    }
  }
  for (const auto& [key, value] : draft.chat_templates) {
    if (value != draft.chat_templates.begin()->second) {
      draft.Refuse(key, absl::StrCat("differs from ", draft.chat_templates.begin()->first,
                                     ": a job has one chat template"));
    }
  }
  if (draft.packing_set) {
    if (draft.pack_strategy == 0) {
      draft.Default("packed_sequence.packing_strategy", "best_fit (AutoModel: thd, in order)");
    }
    data.set_packing(draft.pack_strategy != 0 ? static_cast<v1::Packing>(draft.pack_strategy)
                                              : v1::PACKING_BEST_FIT);
  } else {
    data.set_packing(v1::PACKING_NONE);
    if (draft.pack_strategy != 0) {
      draft.Ignore("packed_sequence.packing_strategy", "packed_sequence_size is 0: no packing");
    }
  }
  if (data.seq_length() == 0) {
    data.set_seq_length(draft.packing_set ? data.pack_length() : kDefaultSeqLength);
    draft.Default(
        "dataset.seq_length",
        absl::StrCat(data.seq_length(), draft.packing_set ? ": packed_sequence_size" : ""));
  } else if (draft.packing_set && data.seq_length() > data.pack_length()) {
    draft.Refuse("packed_sequence.packed_sequence_size",
                 absl::StrCat(data.pack_length(), " is below dataset.seq_length = ",
                              data.seq_length(), ": a sample must fit into a row"));
  }
  data.set_overlong(draft.truncate.value_or(true) ? v1::OVERLONG_TRUNCATE : v1::OVERLONG_DROP);
  if (!draft.Given("dataloader.shuffle")) {
    data.set_shuffle(true);
    draft.Default("dataloader.shuffle", "true");
  }
  if (data.malformed_rows() == v1::MALFORMED_ROWS_UNSPECIFIED) {
    data.set_malformed_rows(v1::MALFORMED_ROWS_FAIL);
  }
}

}  // namespace

void RecipeDraft::Refuse(const std::string& key, const std::string& why) {
  if (ReportLine* line = FindLine(*this, key)) {
    // What was wrong with the value alone comes first.
    if (line->verdict == Verdict::kRefused) return;
    line->verdict = Verdict::kRefused;
    line->note = why;
    return;
  }
  recipe.report.push_back({key, Verdict::kRefused, why, 0});
}

void RecipeDraft::Ignore(const std::string& key, const std::string& why) {
  if (ReportLine* line = FindLine(*this, key);
      line != nullptr && line->verdict != Verdict::kRefused) {
    line->verdict = Verdict::kIgnored;
    line->note = why;
  }
}

void RecipeDraft::Default(const std::string& key, const std::string& what) {
  recipe.report.push_back({key, Verdict::kDefault, what, 0});
}

void FinishDraft(RecipeDraft& draft) {
  FinishSchedule(draft);
  FinishModel(draft);
  FinishParallel(draft);
  FinishOptimizer(draft);
  FinishLrSchedule(draft);
  FinishData(draft);
  // The file's keys, then what is missing, then defaults.
  std::stable_sort(draft.recipe.report.begin(), draft.recipe.report.end(),
                   [](const ReportLine& a, const ReportLine& b) {
                     return (a.verdict == Verdict::kDefault) < (b.verdict == Verdict::kDefault);
                   });
}

}  // namespace switchyard
