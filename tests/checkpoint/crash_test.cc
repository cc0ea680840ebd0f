// Every call with which a checkpoint is written fails once, is cut short, or is the last thing that
// the process does. The checkpoint before must stay usable and the new one be complete or absent.
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "worker/trainer/checkpoint/reader.h"
#include "worker/trainer/checkpoint/test_gang.h"

extern "C" {
void ArmFailingCalls(const char* part, long at, const char* how, long until);
long CountedCalls(void);
}

namespace switchyard {
namespace {

namespace fs = std::filesystem;

using ::testing::AnyOf;
using ::testing::HasSubstr;

const Gang kGang = {2, 1, 2};
const Dtypes kDtypes = {at::kBFloat16, true, true, at::kFloat};

// Every file is what the manifest says, and there is no other.
absl::Status Verify(const std::string& folder) {
  const auto manifest = ReadManifest(folder);
  if (!manifest.ok()) return manifest.status();
  if (absl::Status sizes = CheckFileSizes(folder, *manifest); !sizes.ok()) return sizes;
  std::set<std::string> names = {kManifestName};
  for (const ManifestFile& file : manifest->files) {
    const auto crc = FileCrc32c(folder + "/" + file.name);
    if (!crc.ok()) return crc.status();
    if (*crc != file.crc32c) return absl::DataLossError("crc32c of " + file.name);
    names.insert(file.name);
  }
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = fs::relative(entry.path(), folder).string();
    if (entry.is_regular_file() && names.count(name) == 0) {
      return absl::InternalError("a stray file: " + name);
    }
  }
  return absl::OkStatus();
}

class CrashTest : public testing::TestWithParam<const char*> {
 protected:
  CrashTest()
      : root_(TestFolder("crash")),
        before_(root_ + "/checkpoints/step-1"),
        staging_(root_ + "/staging/1/step-2"),
        source_(SourceFolder()),
        plan_(PlanFor(nullptr, kDtypes, 4500)) {}
  ~CrashTest() override {
    fs::remove_all(root_);
    fs::remove_all(source_);
  }

  // Runs `body` in a process of its own, for which no thread has been started yet. Its exit code,
  // or 128 + signal.
  static int InChild(const std::function<int()>& body) {
    const pid_t pid = fork();
    if (pid == 0) _exit(body());
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  // 0: saved; 1: it threw, and said what to <root>/error.
  int Save(const std::string& folder, long at, const char* how) {
    return InChild([&] {
      ArmFailingCalls("/staging/", at, how, 1L << 60);
      const std::vector<absl::Status> caught =
          CaughtByRank(kGang, [&](const Mesh& mesh, Comm& world) {
            std::vector<BucketShard> shards = MakeShards(mesh, kDtypes);
            Fill(shards);
            SaveCheckpoint(RequestFor(folder, kGang, source_), plan_, shards, world);
          });
      int code = 0;
      std::string error;  // of the rank that knows; the other only that there was one
      for (const absl::Status& status : caught) {
        if (!status.ok()) code = 1;
        if (!absl::IsAborted(status)) absl::StrAppend(&error, status.message());
      }
      const long calls = CountedCalls();
      ArmFailingCalls("", 0, "", 0);
      std::ofstream(root_ + "/calls") << calls;
      std::ofstream(root_ + "/error") << error;
      return code;
    });
  }

  // Loads what Save saves, bit for bit.
  bool Loads(const std::string& folder) {
    return InChild([&] {
             RunGang({1, 1, 1}, [&](const Mesh& mesh, Comm& world) {
               std::vector<BucketShard> shards = MakeShards(mesh, kDtypes);
               LoadCheckpoint(folder, TinyModel(), shards, world);
               ExpectFilled(shards, mesh);
             });
             return HasFailure() ? 1 : 0;
           }) == 0;
  }

  std::string Text(const std::string& name) { return ReadFile(root_ + "/" + name).value_or(""); }

  const std::string root_, before_, staging_, source_;
  const CheckpointPlan plan_;
};

INSTANTIATE_TEST_SUITE_P(Faults, CrashTest,
                         testing::Values("eio", "enospc", "short", "kill", "killed-after"),
                         [](const auto& info) {
                           std::string name = info.param;
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

TEST_P(CrashTest, EveryCallLeavesACompleteCheckpointOrNone) {
  const std::string how = GetParam();
  ASSERT_EQ(Save(before_, 0, "eio"), 0) << Text("error");
  ASSERT_EQ(Save(staging_, 0, "eio"), 0) << Text("error");
  const long calls = std::stol(Text("calls"));
  ASSERT_GT(calls, 60) << "the calls are not seen";
  int complete = 0, absent = 0;
  for (long at = 1; at <= calls; ++at) {
    SCOPED_TRACE(absl::StrCat("call ", at, " of ", calls));
    fs::remove_all(root_ + "/staging");
    const int code = Save(staging_, at, how.c_str());
    const bool has_manifest = fs::exists(staging_ + "/" + kManifestName);
    ASSERT_THAT(Verify(before_), IsOk());
    if (has_manifest) {
      ASSERT_THAT(Verify(staging_), IsOk());
      ASSERT_TRUE(Loads(staging_));
      ++complete;
    } else {
      ++absent;
    }
    if (how == "kill" || how == "killed-after") {
      ASSERT_EQ(code, 128 + SIGKILL);
    } else if (how == "short") {
      ASSERT_EQ(code, 0) << Text("error");
      ASSERT_TRUE(has_manifest);
    } else {
      ASSERT_EQ(code, 1);
      ASSERT_FALSE(fs::exists(staging_)) << "what failed is removed";
      const std::string error = Text("error");
      ASSERT_THAT(error, HasSubstr(root_ + "/staging"));
      ASSERT_THAT(error,
                  HasSubstr(how == "eio" ? "Input/output error" : "No space left on device"));
      if (how == "enospc") {
        ASSERT_THAT(error, HasSubstr("the checkpoint needs "));
      }
    }
  }
  ASSERT_TRUE(Loads(before_));
  RecordProperty("calls", static_cast<int>(calls));
  std::cout << how << ": " << calls << " calls, " << complete << " complete, " << absent
            << " absent\n";
  if (how == "kill") {
    EXPECT_GT(absent, complete);
  }
  if (how == "killed-after") {
    EXPECT_GE(complete, 2) << "from the manifest's rename on it is there";
  }
}

}  // namespace
}  // namespace switchyard
