#include <dirent.h>
#include <sys/stat.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/recipe.h"

namespace switchyard {
namespace {

bool Exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0;
}

bool IsFolder(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool HasSafetensors(const std::string& folder) {
  DIR* entries = ::opendir(folder.c_str());
  if (entries == nullptr) return false;
  bool found = false;
  while (const dirent* entry = ::readdir(entries)) {
    found |= absl::EndsWith(entry->d_name, ".safetensors");
  }
  ::closedir(entries);
  return found;
}

// Why the model cannot be used, or empty.
std::string ModelFault(const v1::ModelSpec& model) {
  const std::string& path = model.path();
  if (!Exists(path)) return absl::StrCat("there is no ", path);
  if (!IsFolder(path)) return absl::StrCat(path, " is no folder");
  for (const char* file : {"config.json", "tokenizer.json"}) {
    if (!Exists(absl::StrCat(path, "/", file))) {
      return absl::StrCat("there is no ", file, " in ", path);
    }
  }
  if (!model.random_init() && !HasSafetensors(path)) {
    return absl::StrCat("there is no *.safetensors in ", path,
                        " (for fresh weights: model._target_ ... .from_config)");
  }
  return "";
}

std::string DataFault(const v1::DatasetSpec& data) {
  for (const std::string& path : data.paths()) {
    const size_t star = path.find_first_of("*?[");
    const std::string real =
        star == std::string::npos ? path : path.substr(0, path.rfind('/', star));
    if (!Exists(real)) return absl::StrCat("there is no ", real);
  }
  return "";
}

// At the first of `keys` that the report has.
void Refuse(Recipe& recipe, const std::vector<std::string>& keys, const std::string& fault) {
  for (ReportLine& line : recipe.report) {
    for (const std::string& key : keys) {
      if (line.key == key && line.verdict == Verdict::kUsed) {
        line.verdict = Verdict::kRefused;
        line.note = fault;
        return;
      }
    }
  }
}

void CheckDataset(Recipe& recipe, const std::vector<std::string>& sections,
                  const v1::DatasetSpec& data) {
  const std::string fault = DataFault(data);
  if (fault.empty()) return;
  std::vector<std::string> keys;
  for (const std::string& section : sections) {
    for (const char* leaf : {"path_or_dataset", "path_or_dataset_id", "dataset_name", "paths"}) {
      keys.push_back(absl::StrCat(section, ".", leaf));
    }
  }
  Refuse(recipe, keys, fault);
}

}  // namespace

void RefuseMissingFiles(Recipe& recipe) {
  const v1::JobSpec& spec = recipe.spec;
  if (!spec.model().path().empty()) {
    const std::string fault = ModelFault(spec.model());
    if (!fault.empty()) {
      Refuse(recipe,
             {"model.pretrained_model_name_or_path", "model.config",
              "model.config.pretrained_model_name_or_path"},
             fault);
    }
  }
  CheckDataset(recipe, {"dataset"}, spec.data().train());
  for (const v1::DatasetSpec& data : spec.data().validation()) {
    std::vector<std::string> sections = {absl::StrCat("validation_dataset_", data.name())};
    if (data.name() == "validation") sections.emplace_back("validation_dataset");
    CheckDataset(recipe, sections, data);
  }
  if (!spec.checkpoint().restore_from().empty() && !IsFolder(spec.checkpoint().restore_from())) {
    Refuse(recipe, {"checkpoint.restore_from"},
           absl::StrCat("there is no folder ", spec.checkpoint().restore_from()));
  }
}

}  // namespace switchyard
