#include "worker/link/messages.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

Json Number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

Json Number(const std::optional<double>& value) {
  return value.has_value() ? Number(*value) : Json(nullptr);
}

// One frame's fields are listed once, in Visit(frame, visitor): Writer and Reader walk the list.
template <typename Visitor>
void Visit(HelloFrame& f, Visitor& v) {
  v.Required("rank", f.rank);
  v.Required("pid", f.pid);
}

template <typename Visitor>
void Visit(PhaseFrame& f, Visitor& v) {
  v.Required("name", f.name);
  v.Optional("message", f.message);
}

template <typename Visitor>
void Visit(PlanFrame& f, Visitor& v) {
  v.Required("weights", f.weights);
  v.Required("gradients", f.gradients);
  v.Required("optimizer", f.optimizer);
  v.Required("activations", f.activations);
  v.Required("buffers", f.buffers);
  v.Required("total", f.total);
}

template <typename Visitor>
void Visit(StepFrame& f, Visitor& v) {
  v.Required("step", f.step);
  v.Optional("total_steps", f.total_steps);
  v.Optional("epoch", f.epoch);
  v.Required("loss", f.loss);
  v.Optional("aux_loss", f.aux_loss);
  v.Optional("grad_norm", f.grad_norm);
  v.Optional("learning_rate", f.learning_rate);
  v.Optional("tokens", f.tokens);
  v.Optional("supervised_tokens", f.supervised_tokens);
  v.Optional("step_seconds", f.step_seconds);
  v.Optional("tokens_per_second", f.tokens_per_second);
  v.Optional("supervised_tokens_per_second", f.supervised_tokens_per_second);
  v.Optional("memory_bytes", f.memory_bytes);
  v.Optional("mfu", f.mfu);
  v.Optional("expert_load_max_over_mean", f.expert_load_max_over_mean);
  v.Optional("skipped", f.skipped);
  v.Optional("skipped_total", f.skipped_total);
  v.Optional("checkpoint_failures", f.checkpoint_failures);
  v.Optional("validation_loss", f.validation_loss);
  v.Optional("validation_name", f.validation_name);
  v.Optional("phase_seconds", f.phase_seconds);
  v.Optional("rank_busy_seconds", f.rank_busy_seconds);
}

template <typename Visitor>
void Visit(ValidationFrame& f, Visitor& v) {
  v.Required("step", f.step);
  v.Required("name", f.name);
  v.Required("loss", f.loss);
  v.Optional("tokens", f.tokens);
}

template <typename Visitor>
void Visit(WarningFrame& f, Visitor& v) {
  v.Required("message", f.message);
}

template <typename Visitor>
void Visit(CheckpointFrame& f, Visitor& v) {
  v.Required("step", f.step);
  v.Required("path", f.path);
  v.Required("manifest_crc32c", f.manifest_crc32c);
  v.Optional("final", f.final);
  v.Optional("loss", f.loss);
  v.Optional("validation_loss", f.validation_loss);
}

template <typename Visitor>
void Visit(ErrorFrame& f, Visitor& v) {
  v.Required("reason", f.reason);
  v.Required("message", f.message);
  v.Optional("step", f.step);
}

template <typename Visitor>
void Visit(DoneFrame& f, Visitor& v) {
  v.Required("step", f.step);
  v.Optional("stopped", f.stopped);
}

template <typename Visitor>
void Visit(ConfigFrame& f, Visitor& v) {
  v.Required("job", f.job);
  v.Required("job_name", f.job_name);
  v.Optional("job_uid", f.job_uid);
  v.Required("attempt", f.attempt);
  v.Required("rank", f.rank);
  v.Required("world_size", f.world_size);
  v.Required("local_rank", f.local_rank);
  v.Optional("master_address", f.master_address);
  v.Optional("master_port", f.master_port);
  v.Required("device", f.device);
  v.Optional("threads", f.threads);
  v.Required("job_dir", f.job_dir);
  v.Optional("resume_from", f.resume_from);
  v.Required("train_tokens", f.train_tokens);
  v.Optional("validation_tokens", f.validation_tokens);
}

template <typename Visitor>
void Visit(StopFrame& f, Visitor& v) {
  v.Optional("reason", f.reason);
  v.Optional("checkpoint", f.checkpoint);
}

template <typename Visitor>
void Visit(CheckpointResultFrame& f, Visitor& v) {
  v.Required("step", f.step);
  v.Required("ok", f.ok);
  v.Optional("path", f.path);
  v.Optional("error", f.error);
}

template <typename T>
constexpr const char* kFrameType = nullptr;
template <>
constexpr const char* kFrameType<HelloFrame> = "hello";
template <>
constexpr const char* kFrameType<PhaseFrame> = "phase";
template <>
constexpr const char* kFrameType<PlanFrame> = "plan";
template <>
constexpr const char* kFrameType<StepFrame> = "step";
template <>
constexpr const char* kFrameType<ValidationFrame> = "validation";
template <>
constexpr const char* kFrameType<WarningFrame> = "warning";
template <>
constexpr const char* kFrameType<CheckpointFrame> = "checkpoint";
template <>
constexpr const char* kFrameType<ErrorFrame> = "error";
template <>
constexpr const char* kFrameType<DoneFrame> = "done";
template <>
constexpr const char* kFrameType<ConfigFrame> = "config";
template <>
constexpr const char* kFrameType<StopFrame> = "stop";
template <>
constexpr const char* kFrameType<CheckpointResultFrame> = "checkpoint_result";

class Writer {
 public:
  explicit Writer(Json& out) : out_(out) {}
  template <typename T>
  void Required(const char* key, const T& value) {
    out_[key] = Convert(value);
  }
  template <typename T>
  void Optional(const char* key, const T& value) {
    out_[key] = Convert(value);
  }

 private:
  template <typename T>
  static Json Convert(const T& value) {
    return value;
  }
  static Json Convert(double value) { return Number(value); }
  static Json Convert(const std::optional<double>& value) { return Number(value); }
  static Json Convert(FailureReason reason) { return std::string(Name(reason)); }
  static Json Convert(const std::map<std::string, double>& values) {
    Json object = Json::object();
    for (const auto& [key, value] : values) object[key] = Number(value);
    return object;
  }
  static Json Convert(const std::vector<TokensFile>& files) {
    Json list = Json::array();
    for (const TokensFile& file : files) {
      Json item = Json::object();
      item["name"] = file.name;
      item["path"] = file.path;
      list.push_back(std::move(item));
    }
    return list;
  }

  Json& out_;
};

// Keeps the first error.
class Reader {
 public:
  explicit Reader(const Json& in) : in_(in) {}
  const absl::Status& status() const { return status_; }

  template <typename T>
  void Required(const char* key, T& value) {
    Read(key, value, /*required=*/true);
  }
  template <typename T>
  void Optional(const char* key, T& value) {
    Read(key, value, /*required=*/false);
  }

 private:
  template <typename T>
  void Read(const char* key, T& value, bool required) {
    if (!status_.ok()) return;
    absl::Status status = Get(key, value);
    if (absl::IsNotFound(status)) {
      if (!required) return;
      status = absl::InvalidArgumentError(status.message());
    }
    status_ = status;
  }
  template <typename T>
  absl::Status Get(const char* key, T& value) {
    absl::StatusOr<T> got = JsonGet<T>(in_, key);
    if (got.ok()) value = *std::move(got);
    return got.status();
  }
  absl::Status Get(const char* key, uint32_t& value) {
    int64_t wide = 0;
    if (absl::Status status = Get(key, wide); !status.ok()) return status;
    if (wide < 0 || wide > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("key '", key, "': ", wide, " is not a 32-bit number"));
    }
    value = static_cast<uint32_t>(wide);
    return absl::OkStatus();
  }
  absl::Status Get(const char* key, std::optional<double>& value) {
    double number = 0;
    if (absl::Status status = Get(key, number); !status.ok()) return status;
    value = number;
    return absl::OkStatus();
  }
  absl::Status Get(const char* key, FailureReason& value) {
    std::string name;
    if (absl::Status status = Get(key, name); !status.ok()) return status;
    const absl::optional<FailureReason> reason = ParseFailureReason(name);
    if (!reason) {
      return absl::InvalidArgumentError(absl::StrCat("unknown failure reason '", name, "'"));
    }
    value = *reason;
    return absl::OkStatus();
  }
  absl::Status Get(const char* key, Json& value) {
    const Json* member = JsonFind(in_, key);
    if (member == nullptr) return absl::NotFoundError(absl::StrCat("key '", key, "' is missing"));
    if (!member->is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("key '", key, "': expected an object, got ", member->type_name()));
    }
    value = *member;
    return absl::OkStatus();
  }
  absl::Status Get(const char* key, std::map<std::string, double>& value) {
    Json object;
    if (absl::Status status = Get(key, object); !status.ok()) return status;
    for (const auto& [name, unused] : object.items()) {
      absl::StatusOr<double> number = JsonGet<double>(object, name);
      if (!number.ok()) return absl::InvalidArgumentError(number.status().message());
      value[name] = *number;
    }
    return absl::OkStatus();
  }
  absl::Status Get(const char* key, std::vector<TokensFile>& value) {
    const Json* list = JsonFind(in_, key);
    if (list == nullptr) return absl::NotFoundError(absl::StrCat("key '", key, "' is missing"));
    if (!list->is_array()) {
      return absl::InvalidArgumentError(
          absl::StrCat("key '", key, "': expected a list, got ", list->type_name()));
    }
    for (const Json& item : *list) {
      absl::StatusOr<std::string> name = JsonGet<std::string>(item, "name");
      absl::StatusOr<std::string> path = JsonGet<std::string>(item, "path");
      if (!name.ok() || !path.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("key '", key, "': expected {\"name\", \"path\"}, got ", DumpJson(item)));
      }
      value.push_back({*std::move(name), *std::move(path)});
    }
    return absl::OkStatus();
  }

  const Json& in_;
  absl::Status status_;
};

template <typename Frame>
Json WriteFrame(const Frame& frame) {
  Json out = Json::object();
  out["type"] = kFrameType<Frame>;
  Writer writer(out);
  Visit(const_cast<Frame&>(frame), writer);  // Writer only reads; Visit is shared with Reader
  return out;
}

// Tries the types of the variant `Out` one after the other.
template <typename Out, size_t kIndex = 0>
absl::StatusOr<Out> ReadFrame(const std::string& type, const Json& json) {
  if constexpr (kIndex == std::variant_size_v<Out>) {
    return absl::InvalidArgumentError(absl::StrCat("read a frame: unknown type '", type, "'"));
  } else {
    using Frame = std::variant_alternative_t<kIndex, Out>;
    if (type != kFrameType<Frame>) return ReadFrame<Out, kIndex + 1>(type, json);
    Frame frame;
    Reader reader(json);
    Visit(frame, reader);
    if (!reader.status().ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("read a ", type, " frame: ", reader.status().message()));
    }
    return Out(std::move(frame));
  }
}

template <typename Out>
absl::StatusOr<Out> ReadTypedFrame(const Json& json) {
  absl::StatusOr<std::string> type = JsonGet<std::string>(json, "type");
  if (!type.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("read a frame: ", type.status().message()));
  }
  return ReadFrame<Out>(*type, json);
}

}  // namespace

Json ToJson(const RankFrame& frame) {
  return std::visit([](const auto& f) { return WriteFrame(f); }, frame);
}

Json ToJson(const AgentFrame& frame) {
  return std::visit([](const auto& f) { return WriteFrame(f); }, frame);
}

absl::StatusOr<RankFrame> ParseRankFrame(const Json& frame) {
  return ReadTypedFrame<RankFrame>(frame);
}

absl::StatusOr<AgentFrame> ParseAgentFrame(const Json& frame) {
  return ReadTypedFrame<AgentFrame>(frame);
}

}  // namespace switchyard
