// What surrounds the services: health, reflection, and a plan's numbers.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/status_matchers.h"
#include "base/thread.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/api/context.h"
#include "server/api/coordinator.h"
#include "server/api/coordinator_testing.h"
#include "switchyard/v1/job_service.grpc.pb.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// The encoded grpc.health.v1.HealthCheckResponse.
constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";

// A stream of encoded messages: those services have no generated code here.
class RawStream {
 public:
  RawStream(const std::string& address, const std::string& method)
      : stub_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    stream_ = stub_.PrepareCall(&context_, method, &queue_);
    stream_->StartCall(&queue_);
    EXPECT_TRUE(Next());
  }
  ~RawStream() {
    context_.TryCancel();
    grpc::Status status;
    stream_->Finish(&status, &queue_);
    Next();
  }
  void Write(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    stream_->Write(grpc::ByteBuffer(&slice, 1), &queue_);
    EXPECT_TRUE(Next());
  }
  // "ended" when there is none any more.
  std::string Read() {
    grpc::ByteBuffer buffer;
    stream_->Read(&buffer, &queue_);
    if (!Next()) return "ended";
    grpc::Slice slice;
    EXPECT_TRUE(buffer.DumpToSingleSlice(&slice).ok());
    return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

class ServingTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "serving_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    config_.listen = config_.agent_listen = config_.metrics_listen = "127.0.0.1:0";
    config_.state_dir = folder_ + "/state";
    config_.artifact_root = folder_ + "/artifacts";
    auto server = Coordinator::Start(config_, RealClock::Get());
    ASSERT_THAT(server, IsOk());
    server_ = *std::move(server);
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(folder_);
  }
  std::string folder_;
  ServerConfig config_;
  std::unique_ptr<Coordinator> server_;
};

TEST_F(ServingTest, HealthFollowsTheServer) {
  // "" is the whole server; else field 1 of the request.
  const std::string job_service = "switchyard.v1.JobService";
  const std::string agent_link = "switchyard.v1.AgentLink";
  const auto request = [](const std::string& service) {
    return absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
  };
  RawStream whole(server_->listen(), "/grpc.health.v1.Health/Watch");
  whole.Write("");
  EXPECT_EQ(whole.Read(), kServing);
  for (const auto& [address, service] :
       {std::pair(server_->listen(), job_service), {server_->agent_listen(), agent_link}}) {
    RawStream one(address, "/grpc.health.v1.Health/Watch");
    one.Write(request(service));
    EXPECT_EQ(one.Read(), kServing) << service;
  }
  std::string last;
  {
    Thread reader("health", [&](const StopToken&) { last = whole.Read(); });
    const absl::Duration start = RealClock::Get().Monotonic();
    server_->Stop();
    EXPECT_LT(RealClock::Get().Monotonic() - start, absl::Seconds(7)) << "streams are held open";
  }
  EXPECT_EQ(last, kNotServing);
}

TEST(CallCounterTest, WaitsForOpenCallsUpToTheLimit) {
  CallCounter calls;
  calls.Begin();
  calls.Begin();
  calls.End();
  EXPECT_FALSE(calls.AwaitNone(absl::Milliseconds(1)));
  calls.End();
  EXPECT_TRUE(calls.AwaitNone(absl::ZeroDuration()));
}

TEST_F(ServingTest, ReflectionNamesTheService) {
  RawStream stream(server_->listen(),
                   "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");
  stream.Write("\x3a\x01*");  // list_services
  EXPECT_THAT(stream.Read(), HasSubstr("switchyard.v1.JobService"));
  stream.Write(absl::StrCat("\x22\x18", "switchyard.v1.JobService"));  // file_containing_symbol
  EXPECT_THAT(stream.Read(), HasSubstr("switchyard/v1/job_service.proto"));
}

TEST_F(ServingTest, APlanCountsParametersAndBytesOfTheModel) {
  ASSERT_THAT(MakeFolders(folder_ + "/model"), IsOk());
  ASSERT_THAT(ReplaceFile(folder_ + "/model/config.json", R"({
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 32,
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "moe_intermediate_size": 4, "num_experts": 4,
    "num_experts_per_tok": 2, "norm_topk_prob": true, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": false,
    "tie_word_embeddings": false, "initializer_range": 0.02, "router_aux_loss_coef": 0.001})"),
              IsOk());
  v1::PlanJobRequest request;
  request.set_parent("projects/p");
  v1::JobSpec& spec = *request.mutable_spec();
  spec = MakeSpec(/*ranks=*/1);
  spec.mutable_model()->set_path(folder_ + "/model");
  const auto jobs = v1::JobService::NewStub(
      grpc::CreateChannel(server_->listen(), grpc::InsecureChannelCredentials()));
  const auto plan = [&] {
    grpc::ClientContext call;
    call.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::PlanJobResponse response;
    const grpc::Status status = jobs->PlanJob(&call, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message() << status.error_details();
    return response;
  };
  const v1::PlanJobResponse one = plan();
  // Embedding and head 2 * 32 * 8; attention 8 * (8 + 4 + 4 + 8) and two norms of 4; norms 3 * 8;
  // router 4 * 8; experts 4 * 3 * 8 * 4, of which each token uses half.
  EXPECT_EQ(one.parameters(), 512 + 192 + 8 + 24 + 32 + 384);
  EXPECT_EQ(one.active_parameters(), one.parameters() - 192);
  EXPECT_EQ(one.memory().weights(), 4 * one.parameters());
  EXPECT_EQ(one.memory().gradients(), 4 * one.parameters());
  EXPECT_EQ(one.memory().optimizer(), 8 * one.parameters());
  EXPECT_GT(one.memory().activations(), 0);
  EXPECT_EQ(one.memory().total(), one.memory().weights() + one.memory().gradients() +
                                      one.memory().optimizer() + one.memory().activations() +
                                      one.memory().buffers());
  EXPECT_FALSE(one.fits_memory()) << "no device is registered";
  EXPECT_EQ(one.micro_batches_per_step(), 8);

  spec.mutable_parallel()->set_num_ranks(2);
  spec.mutable_parallel()->set_ep_size(2);
  const v1::PlanJobResponse two = plan();
  EXPECT_EQ(two.parameters(), one.parameters());
  EXPECT_LT(two.memory().optimizer(), one.memory().optimizer());
  EXPECT_EQ(two.micro_batches_per_step(), 4);
}

}  // namespace
}  // namespace switchyard
