// checkpoints verify: a folder here, or a job's checkpoint read through the coordinator.
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_macros.h"
#include "client/checkpoint_check.h"
#include "client/checkpoints.h"
#include "client/remote_checkpoint.h"

namespace switchyard {
namespace {

class FolderSource final : public CheckpointSource {
 public:
  explicit FolderSource(std::string folder) : folder_(std::move(folder)) {}

  absl::StatusOr<std::vector<std::string>> ListFiles() override {
    std::vector<std::string> names;
    std::error_code error;
    std::filesystem::recursive_directory_iterator it(folder_, error);
    for (; !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
      std::error_code ignored;  // a dangling link is a file that cannot be read
      if (it->is_directory(ignored)) continue;
      names.push_back(std::filesystem::relative(it->path(), folder_, ignored).string());
    }
    if (error) return absl::NotFoundError(absl::StrCat("list ", folder_, ": ", error.message()));
    std::sort(names.begin(), names.end());
    return names;
  }
  absl::Status Scan(const std::string& name,
                    absl::FunctionRef<absl::Status(absl::string_view)> sink) override {
    const std::string path = absl::StrCat(folder_, "/", name);
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    std::vector<char> buffer(1 << 20);
    while (true) {
      const ssize_t n = fd.valid() ? ::read(fd.get(), buffer.data(), buffer.size()) : -1;
      if (n < 0 && fd.valid() && errno == EINTR) continue;
      // Here too: a file that cannot be read is no good to anyone.
      if (n < 0) {
        return absl::DataLossError(
            absl::StrCat("cannot be read: ", ErrnoStatus("read", path, errno).message()));
      }
      if (n == 0) return absl::OkStatus();
      RETURN_IF_ERROR(sink(absl::string_view(buffer.data(), static_cast<size_t>(n))));
    }
  }

 private:
  const std::string folder_;
};

class RemoteSource final : public CheckpointSource {
 public:
  explicit RemoteSource(RemoteCheckpoint& remote) : remote_(remote) {}

  absl::StatusOr<std::vector<std::string>> ListFiles() override {
    std::vector<std::string> names;
    for (const RemoteFile& file : remote_.files()) names.push_back(file.name);
    return names;
  }
  absl::Status Scan(const std::string& name,
                    absl::FunctionRef<absl::Status(absl::string_view)> sink) override {
    for (const RemoteFile& file : remote_.files()) {
      if (file.name == name) return remote_.Read(file, 0, sink);
    }
    return absl::OkStatus();
  }

 private:
  RemoteCheckpoint& remote_;
};

absl::StatusOr<CheckpointReport> CheckWord(CommandContext& context, const std::string& word,
                                           std::string* what) {
  *what = word;
  if (NamesFolder(word)) {
    FolderSource source(word);
    return CheckCheckpoint(source);
  }
  ASSIGN_OR_RETURN(*what, FindCheckpoint(context, word));
  absl::StatusOr<std::unique_ptr<RemoteCheckpoint>> remote =
      RemoteCheckpoint::Open(context.connection, context.terminal, *what, {});
  if (absl::IsDataLoss(remote.status())) {  // of the manifest
    CheckpointReport report;
    report.faults.push_back({"switchyard/manifest.json", std::string(remote.status().message())});
    return report;
  }
  RETURN_IF_ERROR(remote.status());
  RemoteSource source(**remote);
  return CheckCheckpoint(source);
}

}  // namespace

int RunVerify(CommandContext& context) {
  const std::string& word = context.parsed.arguments[1];
  std::string what;
  const absl::StatusOr<CheckpointReport> report = CheckWord(context, word, &what);
  if (!report.ok()) {
    return FailCheckpoint(context, report.status(), absl::StrCat("verify ", word));
  }
  if (context.format != Format::kTable) {
    Json faults = Json::array();
    for (const CheckpointFault& fault : report->faults) {
      faults.push_back({{"file", fault.file}, {"reason", fault.reason}});
    }
    context.terminal.out << Print(Json{{"checkpoint", what},
                                       {"whole", report->faults.empty()},
                                       {"step", report->step},
                                       {"files", report->files},
                                       {"bytes", report->bytes},
                                       {"tensors", report->tensors},
                                       {"faults", faults},
                                       {"notes", report->notes}},
                                  context.format);
    return report->faults.empty() ? 0 : 7;
  }
  for (const std::string& note : report->notes) context.terminal.out << "note: " << note << "\n";
  if (report->faults.empty()) {
    context.terminal.out << what << " is whole: " << report->files << " files, "
                         << HumanBytes(report->bytes) << ", " << report->tensors << " tensors\n";
    return 0;
  }
  std::vector<std::vector<std::string>> rows;
  for (const CheckpointFault& fault : report->faults) rows.push_back({fault.file, fault.reason});
  context.terminal.out << Table({"FILE", "FAULT"}, rows);
  context.terminal.err << "switchyard: " << what << " is damaged: " << rows.size()
                       << (rows.size() == 1 ? " fault" : " faults") << std::endl;
  return 7;
}

}  // namespace switchyard
