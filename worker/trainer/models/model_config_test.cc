#include "worker/trainer/models/model_config.h"

#include <cstdio>
#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Qwen3-30B-A3B as published, in the spelling of Transformers 4.
constexpr char kQwen3V4[] = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
  "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
  "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
  "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
  "output_router_logits": false, "rms_norm_eps": 1e-06, "rope_scaling": null,
  "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
  "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})";

Json Parse(const std::string& text) {
  absl::StatusOr<Json> json = ParseJson(text, "test");
  EXPECT_THAT(json, IsOk());
  return *json;
}

Json Published() { return Parse(kQwen3V4); }

std::string Describe(const ModelConfig& c) {
  std::string text;
  for (double value : {double(c.vocab_size),
                       double(c.hidden_size),
                       double(c.intermediate_size),
                       double(c.num_layers),
                       double(c.num_heads),
                       double(c.num_kv_heads),
                       double(c.head_dim),
                       double(c.moe_intermediate_size),
                       double(c.num_experts),
                       double(c.top_k),
                       double(c.norm_topk_prob),
                       double(c.decoder_sparse_step),
                       double(c.mlp_only_layers.size()),
                       double(c.output_router_logits),
                       c.router_aux_loss_coef,
                       c.rms_norm_eps,
                       double(c.attention_bias),
                       double(c.tie_word_embeddings),
                       double(c.max_position_embeddings),
                       double(c.sliding_window),
                       double(c.max_window_layers),
                       c.initializer_range,
                       double(c.pad_token_id),
                       double(c.rope.type),
                       c.rope.theta,
                       c.rope.partial_rotary_factor,
                       c.rope.factor,
                       double(c.rope.original_max_position_embeddings),
                       c.rope.beta_fast,
                       c.rope.beta_slow,
                       c.rope.mscale,
                       c.rope.mscale_all_dim,
                       c.rope.attention_factor,
                       double(c.rope.truncate),
                       c.rope.low_freq_factor,
                       c.rope.high_freq_factor}) {
    text += std::to_string(value) + " ";
  }
  return c.model_type + " " + text + c.dtype;
}

TEST(ModelConfigTest, ReadsThePublishedFile) {
  absl::StatusOr<ModelConfig> config = ParseModelConfig(Published());
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->hidden_size, 2048);
  EXPECT_EQ(config->num_layers, 48);
  EXPECT_EQ(config->num_heads, 32);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->num_experts, 128);
  EXPECT_EQ(config->top_k, 8);
  EXPECT_EQ(config->moe_intermediate_size, 768);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_EQ(config->rope.theta, 1e6);
  EXPECT_EQ(config->sliding_window, 0);
  EXPECT_EQ(config->pad_token_id, -1);
  EXPECT_EQ(config->dtype, "bfloat16");
  EXPECT_EQ(config->NumMoeLayers(), 48);
}

TEST(ModelConfigTest, BothSpellingsGiveTheSameConfig) {
  Json v5 = Published();
  v5["num_local_experts"] = v5["num_experts"];
  v5.erase("num_experts");
  v5["dtype"] = v5["torch_dtype"];
  v5.erase("torch_dtype");
  v5.erase("rope_theta");
  v5.erase("rope_scaling");
  v5["rope_parameters"] = Parse(R"({"rope_theta": 1000000.0, "rope_type": "default"})");
  absl::StatusOr<ModelConfig> old_config = ParseModelConfig(Published());
  absl::StatusOr<ModelConfig> new_config = ParseModelConfig(v5);
  ASSERT_THAT(old_config, IsOk());
  ASSERT_THAT(new_config, IsOk());
  EXPECT_EQ(Describe(*old_config), Describe(*new_config));
}

TEST(ModelConfigTest, BothSpellingsOfYarnGiveTheSameConfig) {
  Json v4 = Published();
  v4["rope_scaling"] =
      Parse(R"({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})");
  Json v5 = Published();
  v5.erase("rope_theta");
  v5["rope_parameters"] = Parse(
      R"({"rope_theta": 1000000, "rope_type": "yarn", "factor": 4,
          "original_max_position_embeddings": 32768, "truncate": true})");
  absl::StatusOr<ModelConfig> old_config = ParseModelConfig(v4);
  absl::StatusOr<ModelConfig> new_config = ParseModelConfig(v5);
  ASSERT_THAT(old_config, IsOk());
  ASSERT_THAT(new_config, IsOk());
  EXPECT_EQ(old_config->rope.type, RopeType::kYarn);
  EXPECT_EQ(old_config->rope.factor, 4.0);
  EXPECT_EQ(Describe(*old_config), Describe(*new_config));
}

TEST(ModelConfigTest, UsesTransformersDefaultsForOptionalKeys) {
  Json json = Published();
  for (const char* key : {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "head_dim",
                          "output_router_logits", "router_aux_loss_coef", "rms_norm_eps",
                          "attention_bias", "tie_word_embeddings", "rope_theta", "torch_dtype",
                          "max_position_embeddings", "hidden_act", "attention_dropout"}) {
    json.erase(key);
  }
  absl::StatusOr<ModelConfig> config = ParseModelConfig(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_FALSE(config->norm_topk_prob);
  EXPECT_EQ(config->decoder_sparse_step, 1);
  EXPECT_EQ(config->head_dim, 2048 / 32);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_EQ(config->rope.theta, 10000.0);
  EXPECT_EQ(config->max_position_embeddings, 32768);
  EXPECT_EQ(config->dtype, "");
}

TEST(ModelConfigTest, MixesDenseAndMoeLayers) {
  Json json = Published();
  json["num_hidden_layers"] = 6;
  json["decoder_sparse_step"] = 2;
  json["mlp_only_layers"] = {3};
  absl::StatusOr<ModelConfig> config = ParseModelConfig(json);
  ASSERT_THAT(config, IsOk());
  const std::vector<bool> expected = {false, true, false, false, false, true};
  for (int64_t layer = 0; layer < 6; ++layer) {
    EXPECT_EQ(config->IsMoeLayer(layer), expected[layer]) << layer;
  }
  EXPECT_EQ(config->NumMoeLayers(), 2);
}

TEST(ModelConfigTest, PaddingRowFollowsTorch) {
  for (auto [given, expected] : {std::pair<int64_t, int64_t>{0, 0}, {7, 7}, {-1, 151935}}) {
    Json json = Published();
    json["pad_token_id"] = given;
    absl::StatusOr<ModelConfig> config = ParseModelConfig(json);
    ASSERT_THAT(config, IsOk());
    EXPECT_EQ(config->pad_token_id, expected);
  }
}

TEST(ModelConfigTest, SlidingWindowAppliesToAllLayersWhenSwitchedOn) {
  Json json = Published();
  json["use_sliding_window"] = true;
  json["sliding_window"] = 1024;
  absl::StatusOr<ModelConfig> config = ParseModelConfig(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->sliding_window, 1024);
  EXPECT_EQ(config->max_window_layers, 0);
}

TEST(ModelConfigTest, ReadsLlama3Rope) {
  Json json = Published();
  json["rope_scaling"] = Parse(
      R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192})");
  absl::StatusOr<ModelConfig> config = ParseModelConfig(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->rope.type, RopeType::kLlama3);
  EXPECT_EQ(config->rope.factor, 8.0);
  EXPECT_EQ(config->rope.original_max_position_embeddings, 8192);
}

struct Refusal {
  const char* patch;  // merged into the published file; null erases
  absl::StatusCode code;
  const char* names;
  const char* says;
};

class ModelConfigRefusalTest : public testing::TestWithParam<Refusal> {};

TEST_P(ModelConfigRefusalTest, NamesTheKeyAndTheValue) {
  Json json = Published();
  const Json patch = Parse(GetParam().patch);
  for (const auto& item : patch.items()) {
    if (item.value().is_null()) {
      json.erase(item.key());
    } else {
      json[item.key()] = item.value();
    }
  }
  EXPECT_THAT(ParseModelConfig(json), StatusIs(GetParam().code, AllOf(HasSubstr(GetParam().names),
                                                                      HasSubstr(GetParam().says))));
}

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
INSTANTIATE_TEST_SUITE_P(
    Cases, ModelConfigRefusalTest,
    testing::Values(
        Refusal{R"({"model_type": "llama"})", absl::StatusCode::kUnimplemented, "llama",
                "qwen3_moe"},
        Refusal{R"({"model_type": null})", kInvalid, "model_type", "missing"},
        Refusal{R"({"hidden_size": null})", kInvalid, "hidden_size", "missing"},
        Refusal{R"({"vocab_size": null})", kInvalid, "vocab_size", "missing"},
        Refusal{R"({"num_experts": null})", kInvalid, "num_experts", "missing"},
        Refusal{R"({"num_experts_per_tok": null})", kInvalid, "num_experts_per_tok", "missing"},
        Refusal{R"({"hidden_size": "big"})", kInvalid, "hidden_size", "big"},
        Refusal{R"({"hidden_size": 0})", kInvalid, "hidden_size", "got 0"},
        Refusal{R"({"hidden_act": "gelu"})", kInvalid, "hidden_act", "gelu"},
        Refusal{R"({"attention_dropout": 0.1})", kInvalid, "attention_dropout", "0.1"},
        Refusal{R"({"quantization_config": {"quant_method": "fp8"}})", kInvalid,
                "quantization_config", "quantised"},
        Refusal{R"({"layer_types": ["full_attention", "sliding_attention"]})", kInvalid,
                "layer_types", "sliding_attention"},
        Refusal{R"({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})", kInvalid,
                "rope_type", "dynamic"},
        Refusal{R"({"rope_scaling": {"type": "longrope", "factor": 2.0}})", kInvalid, "rope_type",
                "longrope"},
        Refusal{R"({"rope_scaling": {"type": "linear"}})", kInvalid, "factor", ""},
        Refusal{R"({"rope_scaling": {"type": "linear", "factor": -2}})", kInvalid, "factor", "-2"},
        Refusal{R"({"rope_scaling": {"mrope_section": [24, 20, 20]}})", kInvalid, "mrope_section",
                "not implemented"},
        Refusal{R"({"partial_rotary_factor": 0.5})", kInvalid, "partial_rotary_factor", "0.5"},
        Refusal{R"({"num_key_value_heads": 5})", kInvalid, "num_attention_heads", "5"},
        Refusal{R"({"head_dim": 33})", kInvalid, "head_dim", "33"},
        Refusal{R"({"num_experts_per_tok": 129})", kInvalid, "129", "128"},
        Refusal{R"({"num_local_experts": 64})", kInvalid, "128", "64"},
        Refusal{R"({"decoder_sparse_step": 0})", kInvalid, "decoder_sparse_step", "0"},
        Refusal{R"({"decoder_sparse_step": 2, "intermediate_size": null})", kInvalid,
                "intermediate_size", "missing"},
        Refusal{R"({"pad_token_id": 151936})", kInvalid, "pad_token_id", "151936"},
        Refusal{R"({"torch_dtype": "int8"})", kInvalid, "torch_dtype", "int8"}));

TEST(ModelConfigTest, MissingFolderIsNotFound) {
  EXPECT_THAT(ReadModelConfig(testing::TempDir() + "/no-such-model"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no-such-model")));
}

TEST(ModelConfigTest, ReadsAFolderAndNamesItInErrors) {
  const std::string path = testing::TempDir() + "/config.json";
  std::FILE* file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fputs(R"({"model_type": "mixtral"})", file);
  std::fclose(file);
  EXPECT_THAT(ReadModelConfig(testing::TempDir()),
              StatusIs(absl::StatusCode::kUnimplemented,
                       AllOf(HasSubstr(testing::TempDir()), HasSubstr("mixtral"))));
}

}  // namespace
}  // namespace switchyard
