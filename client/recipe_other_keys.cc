// Switchyard's own section `job`, and the sections that AutoModel has and we do not act on.
#include "client/recipe_keys.h"

namespace switchyard {

void AppendOtherKeys(std::vector<RecipeKey>& keys) {
  constexpr auto kUsed = Verdict::kUsed;
  constexpr auto kIgnored = Verdict::kIgnored;
  constexpr auto kRefused = Verdict::kRefused;
  using T = ValueType;
  static constexpr char kMetrics[] = "metrics go to Prometheus, `switchyard watch` and the API";
  static constexpr char kLauncher[] = "the service places jobs; see `resources`";
  static constexpr char kNotText[] = "only text models are there";
  static constexpr char kDistillation[] = "knowledge distillation is not there";
  keys.insert(
      keys.end(),
      {{"job.display_name", T::kString, kUsed, "shown in lists (own key)",
        [](Setting& s) { s.draft.recipe.display_name = s.text; }},
       {"job.labels", T::kStringMap, kUsed, "for `switchyard list --label` (own key)",
        [](Setting& s) { s.draft.recipe.labels = s.strings; }},
       {"job.max_retries", T::kInteger, kUsed,
        "further attempts after infrastructure failures; a newer checkpoint gives all back [20] "
        "(own key)",
        [](Setting& s) { s.draft.spec.mutable_retry()->set_max_retries(s.integer); }, 0, 1000},
       {"job.max_user_retries", T::kInteger, kUsed,
        "further attempts after OOM_GPU, NAN_LOSS and other faults of the job itself [0] (own key)",
        [](Setting& s) { s.draft.spec.mutable_retry()->set_max_user_retries(s.integer); }, 0, 1000},
       {"job.no_progress_limit", T::kInteger, kUsed,
        "the job fails after so many attempts in a row without a newer checkpoint [3] (own key)",
        [](Setting& s) { s.draft.spec.mutable_retry()->set_no_progress_limit(s.integer); }, 1,
        1000},
       {"job.priority", T::kInteger, kUsed,
        "higher goes first and takes the devices of lower jobs, which resume later [0] (own key)",
        [](Setting& s) { s.draft.spec.mutable_schedule()->set_priority(s.integer); }, -1000, 1000},
       {"job.max_run_time_minutes", T::kInteger, kUsed,
        "the job fails with DEADLINE after it has held devices for so long [no limit] (own key)",
        [](Setting& s) {
          s.draft.spec.mutable_schedule()->mutable_max_run_time()->set_seconds(60 * s.integer);
        },
        1, 1000000},
       {"peft.**", T::kAny, kRefused,
        "LoRA comes with a later version; without the section all weights are trained"},
       {"quantization.**", T::kAny, kRefused, "quantised training is not there yet"},
       {"qat.**", T::kAny, kRefused, "quantisation-aware training is not there"},
       {"fp8.**", T::kAny, kRefused,
        "fp8 comes with a later version; use model.torch_dtype: bfloat16"},
       {"neftune.**", T::kAny, kRefused, "noise on embeddings is not there"},
       {"ema.**", T::kAny, kRefused, "averaged weights are not there"},
       {"embedding_row_repair.**", T::kAny, kRefused, "embeddings are trained as they are"},
       {"domain_mixture.**", T::kAny, kRefused,
        "mixtures of data sets are not there; give several paths"},
       {"freeze_config.freeze_vision_tower", T::kBool, kIgnored, kNotText},
       {"freeze_config.freeze_audio_tower", T::kBool, kIgnored, kNotText},
       {"freeze_config.**", T::kAny, kRefused, "all weights are trained"},
       {"processor.**", T::kAny, kRefused, kNotText},
       {"teacher_model.**", T::kAny, kRefused, kDistillation},
       {"kd_ratio.**", T::kAny, kRefused, kDistillation},
       {"kd_loss_fn.**", T::kAny, kRefused, kDistillation},
       {"compile.**", T::kAny, kIgnored, "there is no graph compiler; kernels are built ahead"},
       {"parallelizer.**", T::kAny, kIgnored, "see `distributed`"},
       {"prewarm.**", T::kAny, kIgnored, "nothing needs warming"},
       {"sdpa_method.**", T::kAny, kIgnored, "our own kernels are used"},
       {"tool_call_eval.**", T::kAny, kIgnored, "evaluation is not part of a job yet"},
       {"wandb.**", T::kAny, kIgnored, kMetrics},
       {"mlflow.**", T::kAny, kIgnored, kMetrics},
       {"comet.**", T::kAny, kIgnored, kMetrics},
       {"mfu.**", T::kAny, kIgnored, kMetrics},
       {"moe_metrics.**", T::kAny, kIgnored, kMetrics},
       {"nvtx.**", T::kAny, kIgnored, "profiling is not part of a job"},
       {"benchmark.**", T::kAny, kIgnored, "every step is timed and reported"},
       {"skypilot.**", T::kAny, kIgnored, kLauncher},
       {"nemo_run.**", T::kAny, kIgnored, kLauncher},
       {"slurm.**", T::kAny, kIgnored, kLauncher},
       {"ci.**", T::kAny, kIgnored, "for AutoModel's own tests"}});
}

}  // namespace switchyard
