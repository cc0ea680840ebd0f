// The decoder against Transformers: logits, loss and every gradient of the models that
// make_models.py wrote to $SY_PARITY_DIR.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "worker/trainer/checkpoint/safetensors.h"
#include "worker/trainer/models/decoder.h"
#include "worker/trainer/models/weight_names.h"
#include "worker/trainer/parallel/local_dispatcher.h"
#include "worker/trainer/parallel/local_parameter_store.h"

namespace switchyard {
namespace {

constexpr double kLogitsTolerance = 1e-5;    // of the largest logit
constexpr double kLossTolerance = 1e-6;      // relative
constexpr double kGradientTolerance = 1e-4;  // of the largest element of the tensor

// A copy of one tensor of a file.
at::Tensor ReadTensor(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.Find(name);
  TORCH_CHECK(info != nullptr, file.path(), " has no ", name);
  at::ScalarType type = at::kFloat;
  if (info->dtype == TensorDtype::kF64) type = at::kDouble;
  if (info->dtype == TensorDtype::kI64) type = at::kLong;
  at::Tensor out = at::empty(info->shape, type);
  const absl::string_view bytes = file.Bytes(*info);
  TORCH_CHECK(bytes.size() == out.nbytes(), file.path(), ": ", name, " has ", bytes.size(),
              " bytes");
  std::memcpy(out.mutable_data_ptr(), bytes.data(), bytes.size());
  return out;
}

std::unique_ptr<SafetensorsFile> OpenFile(const std::string& path) {
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  TORCH_CHECK(file.ok(), std::string(file.status().message()));
  return *std::move(file);
}

struct Case {
  std::string name;
  ModelConfig config;
  std::unique_ptr<SafetensorsFile> weights;
  std::unique_ptr<SafetensorsFile> expected;
  DecoderBatch batch;
  int64_t supervised = 0;
  double aux_coef = 0;
};

Case LoadCase(const std::string& root, const std::string& name) {
  const std::string folder = absl::StrCat(root, "/", name);
  Case out;
  out.name = name;
  absl::StatusOr<ModelConfig> config = ReadModelConfig(folder + "/model");
  TORCH_CHECK(config.ok(), std::string(config.status().message()));
  out.config = *config;
  out.weights = OpenFile(folder + "/model/model.safetensors");
  out.expected = OpenFile(folder + "/expected.safetensors");
  const auto batch = OpenFile(folder + "/batch.safetensors");
  out.batch.tokens_T = ReadTensor(*batch, "tokens");
  out.batch.targets_T = ReadTensor(*batch, "targets");
  out.batch.positions_T = ReadTensor(*batch, "positions");
  const at::Tensor ends = ReadTensor(*batch, "cu_seqlens");
  out.batch.cu_seqlens.assign(ends.const_data_ptr<int64_t>(),
                              ends.const_data_ptr<int64_t>() + ends.numel());
  absl::StatusOr<Json> settings = ReadJsonFile(folder + "/settings.json");
  TORCH_CHECK(settings.ok(), std::string(settings.status().message()));
  out.supervised = JsonGet<int64_t>(*settings, "supervised").value();
  out.aux_coef = JsonGet<double>(*settings, "aux_coef").value();
  return out;
}

void LoadWeights(const SafetensorsFile& file, LocalParameterStore* store) {
  for (size_t b = 0; b < store->buckets().size(); ++b) {
    at::Tensor flat = store->Acquire(static_cast<int>(b));
    for (const TensorSlot& slot : store->buckets()[b].slots) {
      const at::Tensor tensor = ReadTensor(file, slot.name);
      TORCH_CHECK(tensor.sizes() == at::IntArrayRef(slot.shape), slot.name, ": ", tensor.sizes());
      flat.narrow(0, slot.offset, slot.numel).copy_(tensor.reshape({-1}));
    }
    store->Release(static_cast<int>(b));
  }
}

// max |got - want| / max |want|; 0 when both are all zero.
double RelativeError(const at::Tensor& got, const at::Tensor& want) {
  const double difference = (got.to(at::kDouble) - want.to(at::kDouble)).abs().max().item<double>();
  return difference == 0 ? 0 : difference / want.to(at::kDouble).abs().max().item<double>();
}

struct Errors {
  double logits = 0;
  double loss = 0;
  double aux = 0;
  double gradient = 0;
  std::string worst;  // tensor with the largest gradient error
};

Errors Compare(const Case& c, ActivationMemory memory) {
  DecoderOptions options;
  options.aux_loss = c.config.output_router_logits ? AuxLoss::kHf : AuxLoss::kOff;
  options.activation_memory = memory;
  options.loss_chunk_tokens = 7;  // several chunks, the last one ragged
  LocalParameterStore store(BuildBuckets(c.config, 0, c.config.num_experts), at::kFloat);
  LoadWeights(*c.weights, &store);
  LocalDispatcher dispatcher(c.config.num_experts);
  Decoder decoder(c.config, options, store, dispatcher);

  Errors out;
  out.logits = RelativeError(decoder.Logits(c.batch), ReadTensor(*c.expected, "logits"));
  const LossSums sums =
      decoder.ForwardBackward(c.batch, 1.0 / static_cast<double>(c.supervised), c.aux_coef);
  EXPECT_EQ(sums.supervised, c.supervised);
  const double aux = sums.aux.item<double>();
  const double loss = sums.ce_sum.item<double>() / static_cast<double>(c.supervised) + aux;
  const double want_loss = ReadTensor(*c.expected, "loss").item<double>();
  const double want_aux = ReadTensor(*c.expected, "aux").item<double>();
  out.loss = std::abs(loss - want_loss) / want_loss;
  out.aux = want_aux == 0 ? aux : std::abs(aux / c.aux_coef - want_aux) / want_aux;
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    const at::Tensor flat = store.gradient(static_cast<int>(b));
    for (const TensorSlot& slot : store.buckets()[b].slots) {
      const double error =
          RelativeError(flat.narrow(0, slot.offset, slot.numel),
                        ReadTensor(*c.expected, "grad." + slot.name).reshape({-1}));
      if (error > out.gradient || out.worst.empty()) {
        out.gradient = std::max(out.gradient, error);
        out.worst = slot.name;
      }
    }
  }
  return out;
}

TEST(ParityTest, EqualsTransformers) {
  const char* root = std::getenv("SY_PARITY_DIR");
  ASSERT_NE(root, nullptr) << "SY_PARITY_DIR is the folder that make_models.py wrote";
  std::ifstream list(absl::StrCat(root, "/cases.txt"));
  std::vector<std::string> names;
  for (std::string name; std::getline(list, name);) names.push_back(name);
  ASSERT_GE(names.size(), 8u);

  at::set_num_threads(1);  // of such sizes, a second one only waits
  std::printf("%-18s %-15s %9s %9s %9s %9s  %s\n", "model", "activations", "logits", "loss", "aux",
              "gradient", "of");
  for (const std::string& name : names) {
    const Case c = LoadCase(root, name);
    for (ActivationMemory memory : {ActivationMemory::kLean, ActivationMemory::kFullRecompute}) {
      SCOPED_TRACE(name);
      const Errors errors = Compare(c, memory);
      std::printf("%-18s %-15s %9.1e %9.1e %9.1e %9.1e  %s\n", name.c_str(),
                  memory == ActivationMemory::kLean ? "lean" : "full_recompute", errors.logits,
                  errors.loss, errors.aux, errors.gradient, errors.worst.c_str());
      EXPECT_LE(errors.logits, kLogitsTolerance);
      EXPECT_LE(errors.loss, kLossTolerance);
      EXPECT_LE(errors.aux, kLossTolerance);
      EXPECT_LE(errors.gradient, kGradientTolerance) << errors.worst;
    }
  }
}

}  // namespace
}  // namespace switchyard
