#include "worker/prep/init_model.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "worker/prep/files.h"
#include "worker/prep/random.h"
#include "worker/prep/row_json.h"
#include "worker/text/text_cc.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/models/model_config.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {

const char kChatMlTemplate[] =
    R"({%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}
{{- messages[0].content + '\n\n' }}
{%- endif %}
{{- '# Tools\n\nYou may call one or more functions.\n\n<tools>' }}
{%- for tool in tools %}
{{- '\n' + (tool | tojson) }}
{%- endfor %}
{{- '\n</tools>\n\nAnswer a call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- generation %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- elif message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
)";

namespace {

constexpr double kInitializerRange = 0.02;
constexpr const char* kSpecials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

// The strings a row would train on: message contents, or every string of other rows.
void CollectTexts(const Json& value, std::vector<std::string>* texts) {
  if (value.is_string()) {
    texts->push_back(value.get<std::string>());
  } else if (value.is_object() && value.contains("content")) {
    CollectTexts(value["content"], texts);
  } else if (value.is_structured()) {
    for (const auto& [key, member] : value.items()) CollectTexts(member, texts);
  }
}

absl::StatusOr<std::vector<std::string>> ReadCorpus(const std::vector<std::string>& paths) {
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ResolveFiles(paths, ""));
  std::vector<std::string> texts;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const std::unique_ptr<RowReader> reader, RowReader::Open(file));
    while (true) {
      ASSIGN_OR_RETURN(const std::optional<RawRow> row, reader->Next());
      if (!row) break;
      if (reader->is_text()) {
        texts.emplace_back(row->text);
        continue;
      }
      ASSIGN_OR_RETURN(const Json json,
                       ParseRowJson(row->text, absl::StrCat(file, ":", row->line)));
      CollectTexts(json, &texts);
    }
  }
  if (texts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("init-model: no text in ", absl::StrJoin(paths, ", ")));
  }
  return texts;
}

Json ConfigJson(const InitModelOptions& options, int64_t vocab_size, int64_t eos_id,
                int64_t pad_id) {
  return Json{{"architectures", {"Qwen3MoeForCausalLM"}},
              {"attention_bias", false},
              {"attention_dropout", 0.0},
              {"bos_token_id", nullptr},
              {"decoder_sparse_step", 1},
              {"dtype", "float32"},
              {"eos_token_id", eos_id},
              {"head_dim", options.head_dim},
              {"hidden_act", "silu"},
              {"hidden_size", options.hidden_size},
              {"initializer_range", kInitializerRange},
              {"intermediate_size", options.intermediate_size},
              {"max_position_embeddings", options.max_position_embeddings},
              {"max_window_layers", options.num_layers},
              {"mlp_only_layers", Json::array()},
              {"model_type", "qwen3_moe"},
              {"moe_intermediate_size", options.moe_intermediate_size},
              {"norm_topk_prob", true},
              {"num_attention_heads", options.num_heads},
              {"num_experts", options.num_experts},
              {"num_experts_per_tok", options.top_k},
              {"num_hidden_layers", options.num_layers},
              {"num_key_value_heads", options.num_kv_heads},
              {"output_router_logits", false},
              {"pad_token_id", pad_id},
              {"rms_norm_eps", 1e-6},
              {"rope_scaling", nullptr},
              {"rope_theta", 10000.0},
              {"router_aux_loss_coef", 0.001},
              {"sliding_window", nullptr},
              {"tie_word_embeddings", options.tie_word_embeddings},
              {"torch_dtype", "float32"},
              {"use_cache", true},
              {"use_sliding_window", false},
              {"vocab_size", vocab_size}};
}

Json TokenizerConfigJson(const InitModelOptions& options) {
  Json decoder = Json::object();
  for (size_t id = 0; id < std::size(kSpecials); ++id) {
    decoder[std::to_string(id)] = {{"content", kSpecials[id]}, {"lstrip", false},
                                   {"normalized", false},      {"rstrip", false},
                                   {"single_word", false},     {"special", true}};
  }
  return Json{{"add_prefix_space", false},
              {"added_tokens_decoder", decoder},
              {"bos_token", nullptr},
              {"chat_template", kChatMlTemplate},
              {"clean_up_tokenization_spaces", false},
              {"eos_token", "<|im_end|>"},
              {"errors", "replace"},
              {"model_max_length", options.max_position_embeddings},
              {"pad_token", "<|endoftext|>"},
              {"split_special_tokens", false},
              {"tokenizer_class", "PreTrainedTokenizerFast"},
              {"unk_token", nullptr}};
}

// Normal draws in pairs (Box-Muller) from the stream of (seed, tensor).
void FillNormal(uint64_t key, int64_t count, double deviation, float* out) {
  constexpr double kTwoPi = 6.283185307179586;
  constexpr double kUnit = 1.0 / 9007199254740992.0;  // 2^-53
  for (int64_t i = 0; i < count; i += 2) {
    const double u =
        (static_cast<double>(Draw64(key, static_cast<uint64_t>(i)) >> 11) + 0.5) * kUnit;
    const double v = static_cast<double>(Draw64(key, static_cast<uint64_t>(i) + 1) >> 11) * kUnit;
    const double radius = deviation * std::sqrt(-2.0 * std::log(u));
    out[i] = static_cast<float>(radius * std::cos(kTwoPi * v));
    if (i + 1 < count) out[i + 1] = static_cast<float>(radius * std::sin(kTwoPi * v));
  }
}

uint64_t StreamKey(uint64_t seed, absl::string_view name) {
  uint64_t key = Mix64(seed + 1);
  for (const char c : name) key = Mix64(key ^ static_cast<unsigned char>(c)) + 0x9e3779b97f4a7c15u;
  return key;
}

absl::StatusOr<std::string> WeightsFile(const ModelConfig& config, uint64_t seed) {
  std::vector<TensorSpec> specs;
  for (const BucketLayout& bucket : BuildBuckets(config, 0, config.num_experts)) {
    for (const TensorSlot& slot : bucket.slots) {
      specs.push_back({slot.name, TensorDtype::kF32, slot.shape});
    }
  }
  ASSIGN_OR_RETURN(const SafetensorsLayout layout, LayOutSafetensors(std::move(specs)));
  std::string file(layout.file_bytes, '\0');
  std::copy(layout.head.begin(), layout.head.end(), file.begin());
  std::vector<float> values;
  for (const TensorInfo& tensor : layout.tensors) {
    values.resize((tensor.end - tensor.begin) / sizeof(float));
    if (absl::EndsWith(tensor.name, "norm.weight")) {
      std::fill(values.begin(), values.end(), 1.0f);
    } else {
      FillNormal(StreamKey(seed, tensor.name), static_cast<int64_t>(values.size()),
                 kInitializerRange, values.data());
      const bool padded_row =
          tensor.name == "model.embed_tokens.weight" && config.pad_token_id >= 0;
      if (padded_row) {
        std::fill_n(values.begin() + config.pad_token_id * config.hidden_size, config.hidden_size,
                    0.0f);
      }
    }
    std::memcpy(file.data() + layout.head.size() + tensor.begin, values.data(),
                tensor.end - tensor.begin);
  }
  return file;
}

}  // namespace

absl::StatusOr<InitModelResult> InitModel(const InitModelOptions& options) {
  const auto path = [&](const char* name) {
    return (std::filesystem::path(options.output) / name).string();
  };
  struct stat info;
  if (stat(path("config.json").c_str(), &info) == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("init-model: ", options.output, " holds a model already"));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, ReadCorpus(options.corpus));
  const std::vector<absl::string_view> views(texts.begin(), texts.end());
  const std::vector<absl::string_view> specials(std::begin(kSpecials), std::end(kSpecials));
  ASSIGN_OR_RETURN(const std::string tokenizer,
                   TrainBpe(views, static_cast<uint32_t>(options.vocab_size), specials));
  ASSIGN_OR_RETURN(const Json parsed, ParseJson(tokenizer, "the trained tokenizer"));
  InitModelResult result;
  result.vocab_size = static_cast<int64_t>(parsed["model"]["vocab"].size());

  const Json config_json = ConfigJson(options, result.vocab_size, /*eos_id=*/2, /*pad_id=*/0);
  ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(config_json));
  ASSIGN_OR_RETURN(const std::string weights, WeightsFile(config, options.seed));
  const Json generation = {{"do_sample", false}, {"eos_token_id", {2, 0}}, {"pad_token_id", 0}};

  RETURN_IF_ERROR(MakeFolders(options.output));
  RETURN_IF_ERROR(ReplaceFile(path("tokenizer.json"), tokenizer));
  RETURN_IF_ERROR(
      ReplaceFile(path("tokenizer_config.json"), DumpJson(TokenizerConfigJson(options), 2) + "\n"));
  RETURN_IF_ERROR(ReplaceFile(path("generation_config.json"), DumpJson(generation, 2) + "\n"));
  RETURN_IF_ERROR(ReplaceFile(path("model.safetensors"), weights));
  // Last: a folder with a config.json is whole.
  RETURN_IF_ERROR(ReplaceFile(path("config.json"), DumpJson(config_json, 2) + "\n"));
  result.parameters = CountParameters(config);
  result.active_parameters = CountActiveParameters(config);
  return result;
}

}  // namespace switchyard
