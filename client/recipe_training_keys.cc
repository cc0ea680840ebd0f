// Keys of schedule, model, parallelism, optimizer and checkpoints.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/recipe_keys.h"

namespace switchyard {
namespace {

constexpr auto kUsed = Verdict::kUsed;
constexpr auto kIgnored = Verdict::kIgnored;
constexpr auto kRefused = Verdict::kRefused;
using T = ValueType;

constexpr double kManySteps = 1e9;
constexpr char kDtypes[] = "bfloat16|float32|bf16|fp32|auto";
constexpr char kMomentDtypes[] = "bfloat16|float32|bf16|fp32";

// `torch_dtype: torch.bfloat16` reached us without "torch.": the reader cuts it off choices.
std::string Dtype(const std::string& text) {
  return absl::StartsWith(text, "float32") || text == "fp32" ? "float32" : "bfloat16";
}

// Sizes of parallel axes that are not there yet: 1 is what we do.
void OnlyOne(Setting& s) {
  if (s.integer > 1) {
    s.Refuse(absl::StrCat(s.integer,
                          ": only 1 is there yet; MoE models scale by distributed.ep_size "
                          "and sharding"));
  }
}
void RefuseTrue(Setting& s) {
  if (s.flag)
    s.Refuse(s.report.note);
  else
    s.Ignore("false is what we do");
}
void RefuseFalse(Setting& s) {
  if (!s.flag)
    s.Refuse(s.report.note);
  else
    s.Ignore("true is what we do");
}

void MomentDtype(Setting& s) {
  s.draft.moment_dtypes[s.key] = Dtype(s.text);
  s.draft.spec.mutable_optimizer()->set_moment_dtype(Dtype(s.text));
}

void ScheduleKeys(std::vector<RecipeKey>& keys) {
  keys.insert(
      keys.end(),
      {{"recipe", T::kTarget, kUsed, "TrainFinetuneRecipeForNextTokenPrediction, bare or dotted"},
       {"recipe._target_", T::kTarget, kUsed, "the same as a section"},
       {"seed", T::kInteger, kUsed, "seeds data order and every draw [42]",
        [](Setting& s) { s.draft.spec.set_seed(static_cast<uint32_t>(s.integer)); }, 0,
        4294967295.0},
       {"deterministic", T::kBool, kUsed,
        "fixed reduction orders everywhere; on the CPU always so (Switchyard's own key)",
        [](Setting& s) { s.draft.spec.set_deterministic(s.flag); }},
       {"rng._target_", T::kTarget, kIgnored, "every draw comes from the seed"},
       {"rng.seed", T::kInteger, kUsed,
        "the seed, when there is no top-level `seed` (AutoModel never reads it)",
        [](Setting& s) { s.draft.rng_seed = static_cast<uint32_t>(s.integer); }, 0, 4294967295.0},
       {"rng.ranked", T::kBool, kIgnored,
        "draws depend on the seed and the step, never on the rank"},
       {"step_scheduler.global_batch_size", T::kInteger, kUsed,
        "rows of one optimizer step over all ranks: packed rows when packing, else samples; "
        "required",
        [](Setting& s) { s.draft.spec.mutable_batch()->set_global_batch_size(s.integer); }, 1,
        1 << 20},
       {"step_scheduler.local_batch_size", T::kInteger, kUsed,
        "rows of one micro-batch on one rank; required",
        [](Setting& s) { s.draft.spec.mutable_batch()->set_local_batch_size(s.integer); }, 1,
        1 << 16},
       {"step_scheduler.num_epochs", T::kInteger, kUsed,
        "passes over the data [10, or as many as max_steps needs]",
        [](Setting& s) { s.draft.spec.mutable_batch()->set_num_epochs(s.integer); }, 1, 1e6},
       {"step_scheduler.max_steps", T::kInteger, kUsed, "ends the job after this many steps",
        [](Setting& s) { s.draft.spec.mutable_batch()->set_max_steps(s.integer); }, 1, kManySteps},
       {"step_scheduler.ckpt_every_steps", T::kInteger, kUsed,
        "a checkpoint after every so many steps [each epoch], and always at the end",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_every_steps(s.integer); }, 1,
        kManySteps},
       {"step_scheduler.val_every_steps", T::kInteger, kUsed,
        "validation loss after every so many steps [at the end], when there is validation data",
        [](Setting& s) { s.draft.spec.mutable_batch()->set_val_every_steps(s.integer); }, 1,
        kManySteps},
       {"step_scheduler.save_checkpoint_every_epoch", T::kBool, kUsed,
        "a checkpoint at the end of each epoch [true without ckpt_every_steps, else false]",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_every_epoch(s.flag); }},
       {"step_scheduler.log_remote_every_steps", T::kInteger, kIgnored, "every step is reported"},
       {"step_scheduler.loss_average_window_steps", T::kInteger, kIgnored,
        "each step's own loss is reported"},
       {"step_scheduler.validate_on_checkpoint", T::kBool, kIgnored,
        "validation follows val_every_steps"},
       {"step_scheduler.gc_every_steps", T::kInteger, kIgnored, "there is no garbage collector"},
       {"step_scheduler.preemption_signal", T::kString, kIgnored,
        "the service stops a gang at a step and checkpoints it by itself"},
       {"step_scheduler.start_step", T::kInteger, kRefused,
        "a checkpoint carries its step: use checkpoint.restore_from",
        [](Setting& s) {
          if (s.integer == 0) s.Ignore("0 is what we do");
        }},
       {"step_scheduler.start_epoch", T::kInteger, kRefused,
        "a checkpoint carries its epoch: use checkpoint.restore_from",
        [](Setting& s) {
          if (s.integer == 0) s.Ignore("0 is what we do");
        }},
       {"clip_grad_norm.max_norm", T::kNumber, kUsed,
        "global L2 norm that the gradient is clipped to [1.0]; 0 or null: no clipping",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_max_grad_norm(s.number); }, 0, 1e6},
       {"clip_grad_norm.backend", T::kAny, kIgnored, "one implementation"}});
}

void ModelKeys(std::vector<RecipeKey>& keys) {
  static constexpr char kOwnKernels[] = "our own kernels are used";
  keys.insert(
      keys.end(),
      {{"model._target_", T::kTarget, kUsed,
        "NeMoAutoModelForCausalLM.from_pretrained, or .from_config for fresh weights",
        [](Setting& s) {
          s.draft.spec.mutable_model()->set_random_init(absl::EndsWith(s.text, "from_config"));
        }},
       {"model.pretrained_model_name_or_path", T::kPath, kUsed,
        "folder with config.json, safetensors and tokenizer; required",
        [](Setting& s) { s.draft.spec.mutable_model()->set_path(s.text); }},
       {"model.config", T::kPath, kUsed, "with from_config: the folder",
        [](Setting& s) { s.draft.spec.mutable_model()->set_path(s.text); }},
       {"model.config._target_", T::kTarget, kUsed, "transformers.AutoConfig.from_pretrained"},
       {"model.config.pretrained_model_name_or_path", T::kPath, kUsed,
        "with from_config: the folder",
        [](Setting& s) { s.draft.spec.mutable_model()->set_path(s.text); }},
       {"model.torch_dtype", T::kChoice, kUsed,
        "dtype of weights and activations in training [bfloat16]; `torch.` may stand in front",
        [](Setting& s) {
          s.draft.spec.mutable_model()->set_dtype(Dtype(s.text));
          if (s.text == "auto") s.Note("auto is bfloat16 here");
        },
        0, 0, kDtypes},
       {"model.dtype", T::kChoice, kUsed, "the same under its newer name",
        [](Setting& s) { s.draft.spec.mutable_model()->set_dtype(Dtype(s.text)); }, 0, 0, kDtypes},
       {"model.router_fp32", T::kBool, kUsed,
        "router logits in fp32 [in the model's dtype, as Transformers] (own key)",
        [](Setting& s) { s.draft.spec.mutable_model()->set_router_fp32(s.flag); }},
       {"model.aux_loss", T::kChoice, kUsed, "definition of the load-balancing loss [hf] (own key)",
        [](Setting& s) {
          s.draft.spec.mutable_model()->set_aux_loss(s.text == "hf"         ? v1::AUX_LOSS_HF
                                                     : s.text == "megatron" ? v1::AUX_LOSS_MEGATRON
                                                                            : v1::AUX_LOSS_OFF);
        },
        0, 0, "hf|megatron|off"},
       {"model.aux_loss_coef", T::kNumber, kUsed,
        "its coefficient [config.json's, when its output_router_logits is true, else 0] (own key)",
        [](Setting& s) { s.draft.spec.mutable_model()->set_aux_loss_coef(s.number); }, 0, 100},
       {"model.trust_remote_code", T::kBool, kIgnored, "no code of a model folder is ever run"},
       {"model.attn_implementation", T::kString, kIgnored, kOwnKernels},
       {"model.output_hidden_states", T::kBool, kIgnored,
        "the loss never needs the whole logits, whatever this says"},
       {"model.use_cache", T::kBool, kIgnored, "training keeps no cache"},
       {"model.use_liger_kernel", T::kBool, kIgnored, kOwnKernels},
       {"model.use_sdpa_patching", T::kBool, kIgnored, kOwnKernels},
       {"model.sdpa_method", T::kAny, kIgnored, kOwnKernels},
       {"model.force_hf", T::kBool, kIgnored,
        "there is one implementation, held equal to Transformers'"},
       {"model.load_base_model", T::kBool, kUsed, "false draws fresh weights [true]",
        [](Setting& s) {
          if (!s.flag) s.draft.spec.mutable_model()->set_random_init(true);
        }},
       {"model.num_nextn_predict_layers", T::kInteger, kRefused,
        "multi-token prediction is not there yet",
        [](Setting& s) {
          if (s.integer == 0) s.Ignore("0 is what we do");
        }},
       {"model.mtp_loss_scaling_factor", T::kNumber, kIgnored,
        "there is no multi-token prediction yet"},
       {"model.mtp_use_repeated_layer", T::kBool, kIgnored,
        "there is no multi-token prediction yet"},
       {"model.text_config.**", T::kAny, kRefused,
        "change config.json in the model folder instead"},
       {"model.backend._target_", T::kTarget, kIgnored, kOwnKernels},
       {"model.backend.attn", T::kString, kIgnored, kOwnKernels},
       {"model.backend.linear", T::kString, kIgnored, kOwnKernels},
       {"model.backend.rms_norm", T::kString, kIgnored, "norms reduce in fp32"},
       {"model.backend.experts", T::kString, kIgnored, "grouped GEMM"},
       {"model.backend.dispatcher", T::kString, kIgnored, "chosen by the trainer"},
       {"model.backend.rope_fusion", T::kBool, kIgnored, kOwnKernels},
       {"model.backend.enable_deepep", T::kBool, kIgnored, "chosen by the trainer"},
       {"model.backend.enable_hf_state_dict_adapter", T::kBool, kIgnored,
        "checkpoints are always in Hugging Face's format"},
       {"model.backend.enable_fsdp_optimizations", T::kBool, kIgnored, kOwnKernels},
       {"model.backend.gate_precision", T::kChoice, kUsed, "float32: as model.router_fp32",
        [](Setting& s) {
          s.draft.spec.mutable_model()->set_router_fp32(Dtype(s.text) == "float32");
        },
        0, 0, kDtypes},
       {"model.backend.fake_balanced_gate", T::kBool, kRefused,
        "a benchmark's router would train nothing useful", RefuseTrue},
       {"loss_fn._target_", T::kTarget, kUsed,
        "MaskedCrossEntropy, FusedLinearCrossEntropy, ChunkedCrossEntropy, TEParallelCrossEntropy: "
        "all are "
        "the mean over the step's supervised tokens, in fp32, without whole logits"},
       {"loss_fn.chunk_len", T::kInteger, kUsed, "tokens that go through the head at once [chosen]",
        [](Setting& s) { s.draft.spec.mutable_model()->set_loss_chunk_tokens(s.integer); }, 1,
        1 << 24},
       {"loss_fn.fp32_upcast", T::kBool, kIgnored, "the loss is always in fp32"},
       {"loss_fn.reduction", T::kString, kIgnored,
        "always the mean over the step's supervised tokens"},
       {"loss_fn.logit_softcapping", T::kNumber, kRefused, "soft-capped logits are not there",
        [](Setting& s) {
          if (s.number == 0) s.Ignore("0 is what we do");
        }},
       {"loss_fn.ignore_index", T::kInteger, kRefused, "masked labels are -100", [](Setting& s) {
          if (s.integer == -100) s.Ignore("-100 is what we do");
        }}});
}

void ParallelKeys(std::vector<RecipeKey>& keys) {
  keys.insert(
      keys.end(),
      {{"resources.num_ranks", T::kInteger, kUsed,
        "processes of the gang, one per GPU or CPU slot [the larger of dp_size and ep_size] (own "
        "key; "
        "AutoModel: --nproc-per-node)",
        [](Setting& s) { s.draft.spec.mutable_parallel()->set_num_ranks(s.integer); }, 1, 65536},
       {"resources.cpu_only", T::kBool, kUsed, "run on the CPU even where GPUs are free (own key)",
        [](Setting& s) { s.draft.spec.mutable_parallel()->set_cpu_only(s.flag); }},
       {"resources.threads_per_rank", T::kInteger, kUsed,
        "CPU threads of one rank [the node's cores divided by its ranks] (own key)",
        [](Setting& s) { s.draft.spec.mutable_parallel()->set_threads_per_rank(s.integer); }, 1,
        1024},
       {"dist_env.backend", T::kString, kIgnored, "NCCL on GPUs, Gloo on CPUs"},
       {"dist_env.timeout_minutes", T::kNumber, kUsed,
        "a collective that takes longer ends the attempt with an error [10]",
        [](Setting& s) {
          const int64_t nanos = std::llround(s.number * 60e9);
          auto* timeout = s.draft.spec.mutable_parallel()->mutable_collective_timeout();
          timeout->set_seconds(nanos / 1000000000);
          timeout->set_nanos(static_cast<int32_t>(nanos % 1000000000));
        },
        0.05, 1440},
       {"distributed.strategy", T::kChoice, kUsed,
        "all three give the same numbers; parameters, gradients and optimizer state are always "
        "sharded",
        nullptr, 0, 0, "fsdp2|ddp|megatron_fsdp"},
       {"distributed.dp_size", T::kInteger, kUsed, "none, or the number of ranks",
        [](Setting& s) { s.draft.dp_size = s.integer; }, 1, 65536},
       {"distributed.dp_replicate_size", T::kInteger, kUsed, "copies of the shards (HSDP) [1]",
        [](Setting& s) { s.draft.spec.mutable_parallel()->set_dp_replicate_size(s.integer); }, 1,
        65536},
       {"distributed.ep_size", T::kInteger, kUsed, "ranks over which the experts are spread [1]",
        [](Setting& s) { s.draft.spec.mutable_parallel()->set_ep_size(s.integer); }, 1, 65536},
       {"distributed.tp_size", T::kInteger, kIgnored, "1 is what we do; more is refused", OnlyOne,
        1, 65536},
       {"distributed.pp_size", T::kInteger, kIgnored, "1 is what we do; more is refused", OnlyOne,
        1, 65536},
       {"distributed.cp_size", T::kInteger, kIgnored, "1 is what we do; more is refused", OnlyOne,
        1, 65536},
       {"distributed.sequence_parallel", T::kBool, kIgnored,
        "without tensor parallelism it does nothing"},
       {"distributed.activation_checkpointing", T::kString, kUsed,
        "true or full: everything is recomputed; false or selective: what is cheap to recompute "
        "is; offload: as full, with the layers' inputs in host memory (own value, GPUs only)",
        [](Setting& s) {
          const std::optional<bool> flag = AsBool(s.node);
          if (s.text == "full" || flag == true) {
            s.draft.spec.mutable_model()->set_activation_memory(
                v1::ACTIVATION_MEMORY_FULL_RECOMPUTE);
          } else if (s.text == "selective" || flag == false) {
            s.draft.spec.mutable_model()->set_activation_memory(v1::ACTIVATION_MEMORY_LEAN);
          } else if (s.text == "offload") {
            s.draft.spec.mutable_model()->set_activation_memory(v1::ACTIVATION_MEMORY_OFFLOAD);
          } else {
            s.Refuse(absl::StrCat("expected true, false, full, selective or offload, found ",
                                  Describe(s.node)));
          }
        }},
       {"distributed.activation_checkpointing_scope", T::kAny, kIgnored,
        "always the whole decoder"},
       {"distributed.reshard_after_forward", T::kBool, kUsed,
        "gathered parameters are dropped after the forward and gathered again [false]",
        [](Setting& s) { s.draft.spec.mutable_parallel()->set_reshard_after_forward(s.flag); }},
       {"distributed.defer_fsdp_grad_sync", T::kBool, kIgnored, "scheduled by the trainer"},
       {"distributed.enable_fsdp2_prefetch", T::kBool, kIgnored, "scheduled by the trainer"},
       {"distributed.enable_compile", T::kBool, kIgnored,
        "there is no graph compiler; kernels are built ahead"},
       {"distributed.enable_async_tensor_parallel", T::kBool, kIgnored,
        "there is no tensor parallelism"},
       {"distributed.mp_policy.**", T::kAny, kIgnored,
        "weights and activations in model.torch_dtype, reductions and master weights in fp32"},
       {"distributed.offload_policy.**", T::kAny, kIgnored, "optimizer state stays on the device"},
       {"distributed.pipeline.**", T::kAny, kIgnored, "there is one pipeline stage"},
       {"distributed.moe.ignore_router_for_ac", T::kBool, kIgnored,
        "the router's choice is always kept, never decided again"},
       {"distributed.moe.reshard_after_forward", T::kBool, kIgnored,
        "follows distributed.reshard_after_forward"},
       {"distributed.moe.lm_head_precision", T::kAny, kIgnored,
        "the head follows model.torch_dtype"},
       {"distributed.moe.wrap_outer_model", T::kBool, kIgnored, "about PyTorch's FSDP only"},
       {"distributed.moe.mp_policy.**", T::kAny, kIgnored, "as distributed.mp_policy"},
       {"distributed.multimodal.**", T::kAny, kIgnored, "only text models are there"}});
}

void OptimizerKeys(std::vector<RecipeKey>& keys) {
  static constexpr char kMaster[] =
      "an exact fp32 master of every weight is kept unless exact_master is false";
  static constexpr char kOneKernel[] = "one fused implementation";
  keys.insert(
      keys.end(),
      {{"optimizer._target_", T::kTarget, kUsed,
        "torch.optim.Adam, torch.optim.AdamW, FusedAdam, FlashAdamW [AdamW]",
        [](Setting& s) { s.draft.optimizer = s.text; }},
       {"optimizer.lr", T::kNumber, kUsed, "peak learning rate; required",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_lr(s.number); }, 0, 10},
       {"optimizer.betas", T::kNumbers, kUsed, "[0.9, 0.999]",
        [](Setting& s) {
          if (s.numbers.size() != 2) {
            s.Refuse(absl::StrCat("expected 2 numbers, found ", s.numbers.size()));
            return;
          }
          for (double beta : s.numbers) {
            if (!(beta >= 0 && beta < 1)) s.Refuse(absl::StrCat(beta, " is outside [0, 1)"));
          }
          s.draft.spec.mutable_optimizer()->set_beta1(s.numbers[0]);
          s.draft.spec.mutable_optimizer()->set_beta2(s.numbers[1]);
        }},
       {"optimizer.eps", T::kNumber, kUsed, "[1e-8]",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_eps(s.number); }, 1e-30, 1},
       {"optimizer.weight_decay", T::kNumber, kUsed, "[0.01 for AdamW and FlashAdamW, else 0]",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_weight_decay(s.number); }, 0, 10},
       {"optimizer.adam_w_mode", T::kBool, kUsed,
        "of FusedAdam: false is L2 instead of decoupled decay [true]",
        [](Setting& s) { s.draft.adam_w_mode = s.flag; }},
       {"optimizer.exp_avg_dtype", T::kChoice, kUsed,
        "dtype of both moments [float32]; bfloat16 rounds stochastically", MomentDtype, 0, 0,
        kMomentDtypes},
       {"optimizer.exp_avg_sq_dtype", T::kChoice, kUsed, "the same as exp_avg_dtype", MomentDtype,
        0, 0, kMomentDtypes},
       {"optimizer.gradient_dtype", T::kChoice, kUsed,
        "dtype in which gradients are accumulated [float32] (own key)",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_gradient_dtype(Dtype(s.text)); }, 0,
        0, kMomentDtypes},
       {"optimizer.exact_master", T::kBool, kUsed,
        "keep the 16 bits that make bfloat16 weights an exact fp32 master; false: weights are "
        "rounded stochastically [true] (own key)",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_exact_master(s.flag); }},
       {"optimizer.max_nonfinite_steps", T::kInteger, kUsed,
        "fail after this many steps in a row without a finite gradient [3] (own key)",
        [](Setting& s) { s.draft.spec.mutable_optimizer()->set_max_nonfinite_steps(s.integer); }, 1,
        1000000},
       {"optimizer.master_weights", T::kBool, kIgnored, kMaster},
       {"optimizer.master_weight_dtype", T::kAny, kIgnored, kMaster},
       {"optimizer.master_weight_bits", T::kInteger, kIgnored, kMaster},
       {"optimizer.store_param_remainders", T::kBool, kIgnored, kMaster},
       {"optimizer.bias_correction", T::kBool, kRefused, "moments are always bias-corrected",
        RefuseFalse},
       {"optimizer.amsgrad", T::kBool, kRefused, "AMSGrad is not there", RefuseTrue},
       {"optimizer.maximize", T::kBool, kRefused, "the loss is minimised", RefuseTrue},
       {"optimizer.foreach", T::kBool, kIgnored, kOneKernel},
       {"optimizer.fused", T::kBool, kIgnored, kOneKernel},
       {"optimizer.capturable", T::kBool, kIgnored, kOneKernel},
       {"optimizer.differentiable", T::kBool, kIgnored, kOneKernel},
       {"optimizer.param_group_overrides", T::kAny, kRefused,
        "rates and decays per parameter group are not there yet"},
       {"optimizer.param_group_overrides.**", T::kAny, kRefused,
        "rates and decays per parameter group are not there yet"},
       {"lr_scheduler.lr_decay_style", T::kChoice, kUsed,
        "[cosine; without the section the rate is constant, without warm-up]",
        [](Setting& s) {
          auto* schedule = s.draft.spec.mutable_lr_schedule();
          schedule->set_decay(s.text == "constant" ? v1::LR_DECAY_CONSTANT
                              : s.text == "linear" ? v1::LR_DECAY_LINEAR
                              : s.text == "cosine" ? v1::LR_DECAY_COSINE
                              : absl::EqualsIgnoreCase(s.text, "wsd")
                                  ? v1::LR_DECAY_WSD
                                  : v1::LR_DECAY_INVERSE_SQUARE_ROOT);
        },
        0, 0, "constant|linear|cosine|inverse-square-root|WSD"},
       {"lr_scheduler.lr_warmup_steps", T::kInteger, kUsed,
        "steps of linear warm-up [a tenth of max_steps, at most 1000; 0 without max_steps]",
        [](Setting& s) { s.draft.spec.mutable_lr_schedule()->set_warmup_steps(s.integer); }, 0,
        kManySteps},
       {"lr_scheduler.lr_decay_steps", T::kInteger, kUsed,
        "steps from 0 to the end of the decay [the job's length]",
        [](Setting& s) { s.draft.spec.mutable_lr_schedule()->set_decay_steps(s.integer); }, 1,
        kManySteps},
       {"lr_scheduler.min_lr", T::kNumber, kUsed, "rate at the end of the decay [0.01 lr]",
        [](Setting& s) { s.draft.spec.mutable_lr_schedule()->set_min_lr(s.number); }, 0, 10},
       {"lr_scheduler.init_lr", T::kNumber, kUsed, "rate where the warm-up starts [0.1 lr]",
        [](Setting& s) { s.draft.spec.mutable_lr_schedule()->set_init_lr(s.number); }, 0, 10},
       {"lr_scheduler.wsd_decay_steps", T::kInteger, kUsed,
        "length of WSD's tail; required with WSD",
        [](Setting& s) { s.draft.spec.mutable_lr_schedule()->set_wsd_decay_steps(s.integer); }, 1,
        kManySteps},
       {"lr_scheduler.lr_wsd_decay_style", T::kChoice, kUsed, "[exponential]",
        [](Setting& s) {
          s.draft.spec.mutable_lr_schedule()->set_wsd_tail(
              s.text == "linear"       ? v1::WSD_TAIL_LINEAR
              : s.text == "cosine"     ? v1::WSD_TAIL_COSINE
              : s.text == "minus_sqrt" ? v1::WSD_TAIL_MINUS_SQRT
                                       : v1::WSD_TAIL_EXPONENTIAL);
        },
        0, 0, "linear|cosine|exponential|minus_sqrt"},
       {"lr_scheduler.start_wd", T::kNumber, kIgnored, "must equal optimizer.weight_decay",
        [](Setting& s) { s.draft.start_end_weight_decay[s.key] = s.number; }, 0, 10},
       {"lr_scheduler.end_wd", T::kNumber, kIgnored, "must equal optimizer.weight_decay",
        [](Setting& s) { s.draft.start_end_weight_decay[s.key] = s.number; }, 0, 10},
       {"lr_scheduler.wd_incr_steps", T::kInteger, kIgnored, "the weight decay is constant"},
       {"lr_scheduler.wd_incr_style", T::kChoice, kIgnored, "the weight decay is constant", nullptr,
        0, 0, "constant"}});
}

void CheckpointKeys(std::vector<RecipeKey>& keys) {
  static constexpr char kAtomic[] =
      "every checkpoint is a consolidated Hugging Face folder, published whole or not at all";
  keys.insert(
      keys.end(),
      {{"checkpoint.enabled", T::kBool, kUsed,
        "false: only the final weights are written, no optimizer state [true]",
        [](Setting& s) { s.draft.checkpoints_off = !s.flag; }},
       {"checkpoint.max_recent_checkpoints", T::kInteger, kUsed,
        "newest checkpoints kept [all]; beside them the final one, pinned ones, those in use, and "
        "what the next two keys say",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_keep_last(s.integer); }, 1, 1e6},
       {"checkpoint.keep_best", T::kInteger, kUsed,
        "also so many with the lowest loss on the first validation data set, as LOWEST_VAL "
        "[1 with max_recent_checkpoints] (own key)",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_keep_best(s.integer); }, 0, 1e6},
       {"checkpoint.keep_every_steps", T::kInteger, kUsed,
        "also those of every so many steps [none] (own key)",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_keep_every_steps(s.integer); }, 1,
        1e9},
       {"checkpoint.restore_from", T::kString, kUsed,
        "folder of a committed checkpoint to start from",
        [](Setting& s) {
          if (s.text == "LATEST" || s.text == "LOWEST_VAL") {
            s.Refuse(
                absl::StrCat(s.text,
                             ": each job has its own checkpoints and resumes from the latest by "
                             "itself; to start from another job's, give the folder that "
                             "`switchyard checkpoints JOB` shows"));
          } else {
            s.draft.spec.mutable_checkpoint()->set_restore_from(
                s.text[0] == '/' ? s.text : absl::StrCat(s.draft.options.folder, "/", s.text));
          }
        }},
       {"checkpoint.save_optimizer", T::kBool, kUsed,
        "optimizer and data state beside the weights, so that a job can resume [true] (own key)",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_save_optimizer(s.flag); }},
       {"checkpoint.max_shard_bytes", T::kInteger, kUsed,
        "largest safetensors file [5 GB] (own key)",
        [](Setting& s) { s.draft.spec.mutable_checkpoint()->set_max_shard_bytes(s.integer); }, 1024,
        1e15},
       {"checkpoint.checkpoint_dir", T::kString, kIgnored,
        "the service keeps checkpoints below its artifact root; `switchyard checkpoints JOB` shows "
        "where"},
       {"checkpoint.model_save_format", T::kChoice, kIgnored, kAtomic, nullptr, 0, 0,
        "safetensors|torch_save"},
       {"checkpoint.save_consolidated", T::kAny, kIgnored, kAtomic},
       {"checkpoint.is_async", T::kBool, kIgnored, kAtomic},
       {"checkpoint.wait_for_staging", T::kBool, kIgnored, kAtomic},
       {"checkpoint.cpu_offload", T::kBool, kIgnored, kAtomic},
       {"checkpoint.staging_dir", T::kString, kIgnored, kAtomic},
       {"checkpoint.single_rank_consolidation", T::kBool, kIgnored, kAtomic},
       {"checkpoint.consolidation_timeout_minutes", T::kNumber, kIgnored, kAtomic},
       {"checkpoint.v4_compatible", T::kBool, kIgnored,
        "config.json keeps the spelling it came with"},
       {"checkpoint.best_metric_key", T::kString, kIgnored,
        "checkpoint.keep_best goes by the loss on the first validation data set"},
       {"checkpoint.allow_legacy_pickle_restore", T::kBool, kIgnored, "pickles are never read"},
       {"checkpoint.legacy_paramwrapper_layout", T::kBool, kIgnored, "about adapters only"},
       {"checkpoint.dequantize_base_checkpoint", T::kBool, kRefused,
        "quantised base checkpoints are not read yet", RefuseTrue}});
}

}  // namespace

void AppendTrainingKeys(std::vector<RecipeKey>& keys) {
  ScheduleKeys(keys);
  ModelKeys(keys);
  ParallelKeys(keys);
  OptimizerKeys(keys);
  CheckpointKeys(keys);
}

}  // namespace switchyard
