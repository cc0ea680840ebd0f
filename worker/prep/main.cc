// switchyard-prep: flags -> one command -> output and exit code. No logic.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "worker/prep/cache.h"
#include "worker/prep/config.h"
#include "worker/prep/flags.h"
#include "worker/prep/init_model.h"
#include "worker/prep/report.h"
#include "worker/prep/wordnet.h"

namespace switchyard {
namespace {

enum ExitCode { kOk = 0, kBadData = 1, kBadConfig = 2, kNoOutput = 3 };

constexpr char kUsage[] =
    R"(switchyard-prep COMMAND [flags]

  run         makes the token files of a job, or finds them in the cache
  validate    reads a data set as a job would and prints a report
  init-model  trains a tokenizer and writes a small random Qwen3-MoE
  wordnet     turns WordNet's glosses into a chat data set

switchyard-prep COMMAND --help lists the flags of a command.
Exit codes: 0 done, 1 bad data, 2 bad usage, settings or model, 3 cannot write.
)";

void PrintError(absl::string_view message) { absl::FPrintF(stderr, "%s\n", message); }

ExitCode ExitFor(PrepFault fault) {
  switch (fault) {
    case PrepFault::kNone:
      return kOk;
    case PrepFault::kData:
      return kBadData;
    case PrepFault::kConfig:
      return kBadConfig;
    case PrepFault::kOutput:
      return kNoOutput;
  }
  return kNoOutput;
}

// Reads flags; true: go on. Otherwise `*exit_code` is set and all is said.
bool ParseOrExplain(FlagSet& flags, const std::vector<std::string>& arguments,
                    ExitCode* exit_code) {
  for (const std::string& argument : arguments) {
    if (argument == "--help" || argument == "-h") {
      absl::PrintF("%s", flags.Help());
      *exit_code = kOk;
      return false;
    }
  }
  const absl::Status status = flags.Parse(arguments);
  if (status.ok()) return true;
  PrintError(status.message());
  *exit_code = kBadConfig;
  return false;
}

absl::StatusOr<PrepConfig> ReadConfigFile(const std::string& path) {
  ASSIGN_OR_RETURN(const Json document, ReadJsonFile(path));
  const Json* job = JsonFind(document, "job");
  if (job == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no key 'job' with the JobSpec"));
  }
  return ParsePrepConfig(*job);
}

ExitCode Run(const std::vector<std::string>& arguments) {
  std::string config_path, cache_dir;
  FlagSet flags(
      "switchyard-prep run",
      "Makes CACHE/<digest>/ with train.tok, validation-<name>.tok and report.json, unless "
      "it is\nthere, and prints {\"folder\", \"cached\", \"report\"} as one line of JSON.");
  flags.Text("config", &config_path, "JSON file: {\"job\": JobSpec}", /*required=*/true);
  flags.Text("cache-dir", &cache_dir, "where token files are kept", /*required=*/true);
  ExitCode exit_code = kOk;
  if (!ParseOrExplain(flags, arguments, &exit_code)) return exit_code;
  const absl::StatusOr<PrepConfig> config = ReadConfigFile(config_path);
  if (!config.ok()) {
    PrintError(config.status().message());
    return kBadConfig;
  }
  const PrepOutcome outcome = RunPrep(*config, cache_dir);
  for (const std::string& message : outcome.messages) PrintError(message);
  if (outcome.fault != PrepFault::kNone) return ExitFor(outcome.fault);
  absl::PrintF("%s\n", DumpJson(Json{{"folder", outcome.folder},
                                     {"cached", outcome.cached},
                                     {"report", outcome.report}}));
  return kOk;
}

ExitCode Validate(const std::vector<std::string>& arguments) {
  std::string config_path;
  bool as_json = false;
  PrepConfig config;
  config.seq_length = 4096;
  config.train.name = "data";
  std::string packing_name = "none";
  FlagSet flags("switchyard-prep validate",
                "Reads, renders, tokenizes, masks and packs data as a job would and says what came "
                "of it.\nGive --config, or --model and --data. Exits 1 when rows are malformed.");
  flags.Text("config", &config_path, "JSON file: {\"job\": JobSpec}");
  flags.Text("model", &config.model_path, "folder with the tokenizer files");
  flags.List("data", &config.train.paths, "files, folders or globs");
  flags.Integer("seq-length", &config.seq_length, 0, "longest sample in tokens; 0: no limit");
  flags.Integer("pack-length", &config.pack_length, 0, "tokens of a packed row; 0: seq-length");
  flags.Parsed("packing", packing_name, "none, sequential or best_fit",
               [&](const std::string& text) -> absl::Status {
                 ASSIGN_OR_RETURN(config.packing, ParsePacking(text));
                 packing_name = text;
                 return absl::OkStatus();
               });
  flags.Parsed("format", "found out from the columns",
               "chat, prompt_completion, alpaca, text, squad or hellaswag",
               [&](const std::string& text) -> absl::Status {
                 ASSIGN_OR_RETURN(config.train.format, ParseDatasetFormat(text));
                 return absl::OkStatus();
               });
  flags.Parsed("loss-mask", "by format", "all, assistant, last_turn or completion",
               [&](const std::string& text) -> absl::Status {
                 ASSIGN_OR_RETURN(config.train.loss_mask, ParseLossMask(text));
                 return absl::OkStatus();
               });
  flags.Parsed("overlong", "truncate", "truncate or drop",
               [&](const std::string& text) -> absl::Status {
                 ASSIGN_OR_RETURN(config.overlong, ParseOverlong(text));
                 return absl::OkStatus();
               });
  flags.Parsed(
      "column", "", "ROLE=COLUMN, with ROLE context, question or answer; may be repeated",
      [&](const std::string& text) -> absl::Status {
        const size_t equals = text.find('=');
        if (equals == std::string::npos) {
          return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not ROLE=COLUMN"));
        }
        config.train.column_mapping[text.substr(0, equals)] = text.substr(equals + 1);
        return absl::OkStatus();
      });
  flags.Text("split", &config.train.split, "a slice, such as train[:1000] or [10%:20%]");
  flags.Integer("limit-rows", &config.train.limit_rows, 0, "first rows only; 0: all");
  flags.Switch("use-chat-template", &config.train.use_chat_template,
               "column-mapped, squad and prompt/completion data as conversations");
  flags.Text("chat-template", &config.chat_template, "Jinja text or file instead of the model's");
  flags.Switch("json", &as_json, "print report.json");
  ExitCode exit_code = kOk;
  if (!ParseOrExplain(flags, arguments, &exit_code)) return exit_code;
  if (!config_path.empty()) {
    absl::StatusOr<PrepConfig> read = ReadConfigFile(config_path);
    if (!read.ok()) {
      PrintError(read.status().message());
      return kBadConfig;
    }
    config = *std::move(read);
    packing_name = config.packing == Packing::kNone         ? "none"
                   : config.packing == Packing::kSequential ? "sequential"
                                                            : "best_fit";
  } else {
    for (const std::string& fault : ValidatePrepConfig(config)) {
      PrintError(fault);
      exit_code = kBadConfig;
    }
    if (exit_code != kOk) return exit_code;
  }
  const ValidateOutcome outcome = ValidateData(config);
  for (const std::string& message : outcome.messages) PrintError(message);
  if (!outcome.messages.empty()) return ExitFor(outcome.fault);
  if (as_json) {
    absl::PrintF("%s\n", DumpJson(ReportJson(outcome.report), 2));
  } else {
    absl::PrintF("%s", ReportText(outcome.report, packing_name));
  }
  return ExitFor(outcome.fault);
}

ExitCode MakeModel(const std::vector<std::string>& arguments) {
  InitModelOptions options;
  int64_t seed = static_cast<int64_t>(options.seed);
  bool untied = false;
  FlagSet flags(
      "switchyard-prep init-model",
      "Trains a byte-level BPE tokenizer on the corpus and writes a random Qwen3-MoE with "
      "it, in\nHugging Face format.");
  flags.Text("output", &options.output, "folder for the model", /*required=*/true);
  flags.List("corpus", &options.corpus, "data files, folders or globs to train the tokenizer on",
             /*required=*/true);
  flags.Parsed("preset", "quickstart", "quickstart: the defaults below",
               [](const std::string& text) -> absl::Status {
                 if (text == "quickstart") return absl::OkStatus();
                 return absl::InvalidArgumentError(
                     absl::StrCat("unknown preset '", text, "' (known: quickstart)"));
               });
  flags.Integer("vocab-size", &options.vocab_size, 259, "tokens, special ones included, at most");
  flags.Integer("seed", &seed, 0, "of the weights");
  flags.Integer("hidden-size", &options.hidden_size, 1, "width of the residual stream");
  flags.Integer("intermediate-size", &options.intermediate_size, 1, "width of a dense MLP");
  flags.Integer("moe-intermediate-size", &options.moe_intermediate_size, 1, "width of an expert");
  flags.Integer("num-layers", &options.num_layers, 1, "blocks");
  flags.Integer("num-heads", &options.num_heads, 1, "query heads");
  flags.Integer("num-kv-heads", &options.num_kv_heads, 1, "key and value heads");
  flags.Integer("head-dim", &options.head_dim, 2, "width of a head");
  flags.Integer("num-experts", &options.num_experts, 1, "experts of a layer");
  flags.Integer("top-k", &options.top_k, 1, "experts a token goes to");
  flags.Integer("max-position-embeddings", &options.max_position_embeddings, 1, "longest sequence");
  flags.Switch("untied", &untied, "an output matrix of its own instead of the embedding's");
  ExitCode exit_code = kOk;
  if (!ParseOrExplain(flags, arguments, &exit_code)) return exit_code;
  options.seed = static_cast<uint64_t>(seed);
  options.tie_word_embeddings = !untied;
  const absl::StatusOr<InitModelResult> made = InitModel(options);
  if (!made.ok()) {
    PrintError(made.status().message());
    return absl::IsUnavailable(made.status()) ? kNoOutput : kBadConfig;
  }
  absl::PrintF("%s: %d parameters, %d of them active per token, vocabulary %d\n", options.output,
               made->parameters, made->active_parameters, made->vocab_size);
  return kOk;
}

ExitCode Wordnet(const std::vector<std::string>& arguments) {
  WordnetOptions options;
  options.input = "/usr/share/wordnet";
  int64_t seed = static_cast<int64_t>(options.seed);
  FlagSet flags(
      "switchyard-prep wordnet",
      "Writes OUTPUT/train.jsonl and OUTPUT/validation.jsonl: \"Define <word> (<part of "
      "speech>).\"\nand WordNet's gloss, as conversations (Debian package wordnet-base).");
  flags.Text("input", &options.input, "folder with WordNet's data.noun, data.verb, ...");
  flags.Text("output", &options.output, "folder for the two files", /*required=*/true);
  flags.Integer("limit", &options.limit, 0, "rows of train.jsonl; 0: all");
  flags.Integer("seed", &seed, 0, "of the order of rows and of the split");
  ExitCode exit_code = kOk;
  if (!ParseOrExplain(flags, arguments, &exit_code)) return exit_code;
  options.seed = static_cast<uint64_t>(seed);
  const absl::StatusOr<WordnetResult> written = WriteWordnet(options);
  if (!written.ok()) {
    PrintError(written.status().message());
    return absl::IsNotFound(written.status()) || absl::IsInvalidArgument(written.status())
               ? kBadData
               : kNoOutput;
  }
  absl::PrintF("%s: %d train rows, %d validation rows\n", options.output, written->train_rows,
               written->validation_rows);
  return kOk;
}

ExitCode Main(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  if (command == "--help" || command == "-h" || command == "help") {
    absl::PrintF("%s", kUsage);
    return kOk;
  }
  const std::pair<const char*, ExitCode (*)(const std::vector<std::string>&)> commands[] = {
      {"run", &Run}, {"validate", &Validate}, {"init-model", &MakeModel}, {"wordnet", &Wordnet}};
  for (const auto& [name, body] : commands) {
    if (command == name) return body({arguments.begin() + 1, arguments.end()});
  }
  PrintError(command.empty() ? std::string(kUsage)
                             : absl::StrCat("switchyard-prep: unknown command '", command,
                                            "' (known: run, validate, init-model, wordnet)"));
  return kBadConfig;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  return switchyard::Main(std::vector<std::string>(argv + 1, argv + argc));
}
