#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "server/api/coordinator_testing.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A finished job "j" with checkpoints of steps 5 and 10, the last one its result. A checkpoint has
// the file model.safetensors with the text "weights" (coordinator_testing.h).
class CheckpointServiceTest : public CoordinatorTest {
 protected:
  void SetUp() override {
    CoordinatorTest::SetUp();
    agent_ = std::make_unique<FakeAgent>(server_->agent_listen(), "a", 2);
    FakeAgent& agent = *agent_;
    job_ = Submit("j");
    assign_ = agent.AwaitAssign();
    agent.Prepare(job_);
    agent.AwaitStart();
    agent.Run(job_);
    ASSERT_TRUE(agent.Commit(assign_, 5, false).ok());
    ASSERT_TRUE(agent.Commit(assign_, 10, true).ok());
    agent.Finish(job_, 1, true);
    ASSERT_EQ(State(job_), v1::Job::SUCCEEDED);
  }
  void TearDown() override {
    agent_.reset();
    CoordinatorTest::TearDown();
  }
  std::string Name(int64_t step) const { return absl::StrCat(job_, "/checkpoints/step-", step); }
  std::string File(int64_t step, const std::string& file = "model.safetensors") const {
    return absl::StrCat(assign_.job_dir(), "/checkpoints/step-", step, "/", file);
  }
  grpc::Status GetCheckpoint(const std::string& name, v1::GetCheckpointResponse* response) {
    v1::GetCheckpointRequest request;
    request.set_name(name);
    return checkpoints_->GetCheckpoint(MakeCall().get(), request, response);
  }
  v1::DownloadCheckpointRequest Ask(int64_t step, int64_t offset = 0, int chunk = 0) const {
    v1::DownloadCheckpointRequest request;
    request.set_name(Name(step));
    request.set_file("model.safetensors");
    request.set_offset(offset);
    request.set_chunk_bytes(chunk);
    return request;
  }
  grpc::Status Download(const v1::DownloadCheckpointRequest& request, std::string* data) {
    auto call = MakeCall();
    auto stream = checkpoints_->DownloadCheckpoint(call.get(), request);
    v1::DownloadCheckpointResponse response;
    int64_t offset = request.offset();
    while (stream->Read(&response)) {
      EXPECT_EQ(response.offset(), offset);
      EXPECT_EQ(response.crc32c(), Crc32c(response.data()));
      data->append(response.data());
      offset += static_cast<int64_t>(response.data().size());
    }
    return stream->Finish();
  }
  // What went wrong, or OK.
  std::string Reason(const v1::DownloadCheckpointRequest& request) {
    std::string data;
    const grpc::Status status = Download(request, &data);
    return status.ok() ? "OK" : ReasonOf(status);
  }
  std::vector<int64_t> Steps() {
    v1::ListCheckpointsRequest request;
    request.set_parent(job_);
    v1::ListCheckpointsResponse response;
    EXPECT_TRUE(checkpoints_->ListCheckpoints(MakeCall().get(), request, &response).ok());
    std::vector<int64_t> steps;
    for (const v1::Checkpoint& c : response.checkpoints()) steps.push_back(c.step());
    return steps;
  }
  grpc::Status Delete(int64_t step, bool final) {
    v1::DeleteCheckpointRequest request;
    request.set_name(Name(step));
    request.set_final(final);
    v1::DeleteCheckpointResponse response;
    return checkpoints_->DeleteCheckpoint(MakeCall().get(), request, &response);
  }

  std::unique_ptr<FakeAgent> agent_;
  std::string job_;
  v1::Assign assign_;
};

TEST_F(CheckpointServiceTest, ListsItsFilesWithSizeAndChecksum) {
  v1::GetCheckpointResponse response;
  ASSERT_TRUE(GetCheckpoint(Name(10), &response).ok());
  EXPECT_TRUE(response.checkpoint().final());
  ASSERT_EQ(response.files_size(), 2);
  EXPECT_EQ(response.files(0).name(), "model.safetensors");
  EXPECT_EQ(response.files(0).size_bytes(), 7);
  EXPECT_EQ(response.files(0).crc32c(), Crc32c("weights"));
  EXPECT_EQ(response.files(1).name(), "switchyard/manifest.json");
  const std::string manifest = *ReadFile(File(10, "switchyard/manifest.json"));
  EXPECT_EQ(response.files(1).size_bytes(), static_cast<int64_t>(manifest.size()));
  EXPECT_EQ(response.files(1).crc32c(), Crc32c(manifest));
}

TEST_F(CheckpointServiceTest, SendsAFileInChunksFromAnyOffset) {
  for (const int chunk : {0, 1, 3, 7, 1 << 20}) {
    for (int64_t offset = 0; offset <= 7; ++offset) {
      std::string data;
      ASSERT_TRUE(Download(Ask(10, offset, chunk), &data).ok());
      EXPECT_EQ(data, std::string("weights").substr(static_cast<size_t>(offset)));
    }
  }
}

TEST_F(CheckpointServiceTest, RefusesWhatIsNotThere) {
  v1::DownloadCheckpointRequest request = Ask(10, 8);
  EXPECT_EQ(Reason(request), "OFFSET_INVALID");
  request = Ask(10, -1);
  EXPECT_EQ(Reason(request), "OFFSET_INVALID");
  request = Ask(10, 0, (1 << 20) + 1);
  EXPECT_EQ(Reason(request), "CHUNK_BYTES_INVALID");
  request = Ask(10);
  request.set_manifest_crc32c(1);
  EXPECT_EQ(Reason(request), "CHECKPOINT_CHANGED");
  request = Ask(7);
  EXPECT_EQ(Reason(request), "CHECKPOINT_NOT_FOUND");
  for (const char* name :
       {"", "projects/p/jobs/j", "projects/p/jobs/j/checkpoints/step-",
        "projects/p/jobs/j/checkpoints/step--1", "projects/p/jobs/j/checkpoints/step-010",
        "projects/p/jobs/../checkpoints/step-10",
        "projects/p/jobs/j/checkpoints/step-99999999999999999999"}) {
    request = Ask(10);
    request.set_name(name);
    EXPECT_EQ(Reason(request), "CHECKPOINT_NAME_INVALID") << name;
  }
  request = Ask(10);
  request.set_name("projects/p/jobs/k/checkpoints/step-10");
  EXPECT_EQ(Reason(request), "JOB_NOT_FOUND");
}

TEST_F(CheckpointServiceTest, OnlyFilesOfTheManifestCanBeAskedFor) {
  ASSERT_THAT(ReplaceFile(File(10, "secret"), "x"), IsOk());
  for (const char* file : {"secret", "../step-5/model.safetensors", "/etc/passwd", "",
                           "./model.safetensors", "switchyard", "model.safetensors/"}) {
    v1::DownloadCheckpointRequest request = Ask(10);
    request.set_file(file);
    EXPECT_EQ(Reason(request), "FILE_NOT_FOUND") << file;
  }
  v1::DownloadCheckpointRequest request = Ask(10);
  request.set_file(std::string("model.safetensors\0", 18));
  EXPECT_EQ(Reason(request), "FILE_NOT_FOUND");
}

TEST_F(CheckpointServiceTest, LinksPipesAndFilesOfAnotherSizeAreRefused) {
  const std::string outside = folder_ + "/outside";
  ASSERT_THAT(ReplaceFile(outside, "secrets"), IsOk());  // as long as "weights"
  ASSERT_EQ(::unlink(File(10).c_str()), 0);
  EXPECT_EQ(Reason(Ask(10)), "CHECKPOINT_DAMAGED") << "missing";
  ASSERT_EQ(::symlink(outside.c_str(), File(10).c_str()), 0);
  EXPECT_EQ(Reason(Ask(10)), "CHECKPOINT_DAMAGED") << "symbolic link";
  ASSERT_EQ(::unlink(File(10).c_str()), 0);
  ASSERT_EQ(::link(outside.c_str(), File(10).c_str()), 0);
  EXPECT_EQ(Reason(Ask(10)), "CHECKPOINT_DAMAGED") << "hard link";
  ASSERT_EQ(::unlink(File(10).c_str()), 0);
  ASSERT_EQ(::mkfifo(File(10).c_str(), 0600), 0);
  EXPECT_EQ(Reason(Ask(10)), "CHECKPOINT_DAMAGED") << "pipe";
  ASSERT_EQ(::unlink(File(10).c_str()), 0);
  ASSERT_THAT(ReplaceFile(File(10), "weight"), IsOk());
  EXPECT_EQ(Reason(Ask(10)), "CHECKPOINT_DAMAGED") << "size";

  // A folder on the way that is a link, to files that are as they should be.
  const std::string job_dir = assign_.job_dir();
  std::filesystem::rename(job_dir + "/checkpoints/step-5", folder_ + "/moved");
  std::filesystem::create_directory_symlink(folder_ + "/moved", job_dir + "/checkpoints/step-5");
  EXPECT_EQ(Reason(Ask(5)), "CHECKPOINT_DAMAGED");
  std::filesystem::rename(job_dir, folder_ + "/elsewhere");
  EXPECT_EQ(Reason(Ask(5)), "ARTIFACTS_UNAVAILABLE") << "as when it is not mounted";
}

TEST_F(CheckpointServiceTest, AManifestThatChangedIsRefused) {
  const std::string path = File(10, "switchyard/manifest.json");
  std::string text = *ReadFile(path);
  text[3] ^= 1;
  ASSERT_THAT(ReplaceFile(path, text), IsOk());
  EXPECT_EQ(Reason(Ask(10)), "CHECKPOINT_DAMAGED");
  v1::GetCheckpointResponse response;
  const grpc::Status status = GetCheckpoint(Name(10), &response);
  EXPECT_EQ(ReasonOf(status), "CHECKPOINT_DAMAGED");
  EXPECT_THAT(status.error_message(), HasSubstr("switchyard/manifest.json: it has crc32c"));
}

TEST_F(CheckpointServiceTest, PinsAndDeletes) {
  v1::PinCheckpointRequest pin;
  pin.set_name(Name(5));
  v1::PinCheckpointResponse pinned;
  ASSERT_TRUE(checkpoints_->PinCheckpoint(MakeCall().get(), pin, &pinned).ok());
  EXPECT_TRUE(pinned.checkpoint().pinned());
  EXPECT_EQ(ReasonOf(Delete(5, true)), "CHECKPOINT_PINNED");
  EXPECT_EQ(ReasonOf(Delete(10, false)), "CHECKPOINT_FINAL");
  EXPECT_EQ(ReasonOf(Delete(6, false)), "CHECKPOINT_NOT_FOUND");
  v1::UnpinCheckpointRequest unpin;
  unpin.set_name(Name(5));
  v1::UnpinCheckpointResponse unpinned;
  ASSERT_TRUE(checkpoints_->UnpinCheckpoint(MakeCall().get(), unpin, &unpinned).ok());
  EXPECT_FALSE(unpinned.checkpoint().pinned());
  ASSERT_TRUE(Delete(5, false).ok());
  ASSERT_TRUE(Delete(5, false).ok()) << "again";
  EXPECT_THAT(Steps(), ElementsAre(10));
  EXPECT_EQ(Reason(Ask(5)), "CHECKPOINT_NOT_FOUND");
  ASSERT_TRUE(Delete(10, true).ok());
  EXPECT_THAT(Steps(), ElementsAre());
}

// A reader that takes nothing keeps the stream's one message and gRPC's buffers, not the file.
TEST_F(CheckpointServiceTest, ASlowReaderCostsOneMessage) {
  const auto resident_kb = [] {
    std::ifstream status("/proc/self/status");
    std::string word;
    int64_t kb = 0;
    while (status >> word) {
      if (word == "VmRSS:") status >> kb;
    }
    return kb;
  };
  const std::string big(64 << 20, 'x');
  FakeAgent& agent = *agent_;
  const std::string job = Submit("big");
  const v1::Assign assign = agent.AwaitAssign();
  agent.Prepare(job);
  agent.AwaitStart();
  agent.Run(job);
  ASSERT_TRUE(agent.Commit(assign, 5, true, nullptr, big).ok());
  v1::DownloadCheckpointRequest request = Ask(5);
  request.set_name(job + "/checkpoints/step-5");
  grpc::ClientContext call;
  auto stream = checkpoints_->DownloadCheckpoint(&call, request);
  v1::DownloadCheckpointResponse response;
  ASSERT_TRUE(stream->Read(&response));
  const int64_t before = resident_kb();
  // What a reader takes in the meantime is from another stream: time passes, and it stays flat.
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Reason(Ask(10)), "OK");
  EXPECT_LT(resident_kb() - before, 16 << 10);
  int64_t bytes = static_cast<int64_t>(response.data().size());
  while (stream->Read(&response)) bytes += static_cast<int64_t>(response.data().size());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(bytes, 64 << 20);
  agent.Finish(job, 1, true);
}

}  // namespace
}  // namespace switchyard
