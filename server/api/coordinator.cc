#include "server/api/coordinator.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/failpoint.h"
#include "base/json.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "server/api/agent_gateway.h"
#include "server/api/context.h"
#include "server/api/convert.h"
#include "server/api/listener.h"
#include "server/artifacts/housekeeper.h"
#include "server/metrics/exposition.h"
#include "server/store/artifact_root.h"
#include "server/store/history_pruner.h"

namespace switchyard {
namespace {

Failpoint before_recovery("start.before_recovery", FailpointKind::kEvent);
Failpoint before_serving("start.before_serving", FailpointKind::kEvent);

constexpr int64_t kBallastBytes = 64 << 20;
constexpr int kMaxUnaryThreads = 64;
constexpr size_t kMaxLiveJobs = 200;                      // series per gauge at a scrape
constexpr absl::Duration kCallGrace = absl::Seconds(10);  // at a stop, for unary calls
// For the rest after that: answers on their way, and streams of others (health, reflection), which
// a client may hold open for ever.
constexpr absl::Duration kStreamGrace = absl::Seconds(2);
// Calls from agents may carry as much log as a frame between trainer and agent.
constexpr int kMaxAgentMessageBytes = 16 << 20;
constexpr int kMaxClientMessageBytes = 4 << 20;

std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':') + 1), port);
}

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:");
}

}  // namespace

struct Coordinator::Impl {
  Impl(const ServerConfig& c, Clock& clk, std::unique_ptr<Metrics> m, std::unique_ptr<Store> s)
      : config(c),
        lease_config{c.lease_ttl, c.heartbeat_interval},
        clock(clk),
        metrics(std::move(m)),
        store(std::move(s)),
        leases(lease_config, clock),
        checksums([this] { loop.Wake(); }),
        holds(clock),
        publisher(*store, config.artifact_root, config.verify_checksums,
                  config.verify_resume ? &checksums : nullptr, &holds),
        housekeeper(*store, publisher, holds, clock, config.garbage_grace),
        logs(config.state_dir + "/logs"),
        pruner(*store, clock, {c.keep_history, c.keep_requests}),
        pump(clock),
        downloads(clock),
        loop(
            *store, leases, clock,
            [this](const JobRecord& job) { return publisher.ResumePath(job); },
            [this](const NodeId&) { metrics->LeaseExpired(); }) {}

  absl::Status Listen(const std::string& address, const std::string& agent_address);
  // A server and the listener that feeds it.
  struct Endpoint {
    std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
    std::unique_ptr<grpc::Server> server;
    std::unique_ptr<Listener> listener;  // last: nothing is fed to a server that is gone
  };
  absl::StatusOr<Endpoint> Build(const std::string& address, int max_message,
                                 std::vector<grpc::Service*> services, std::string* real_address);
  void SetServing(bool serving);
  void OnCommit(const ChangeSet& changes);
  absl::StatusOr<LiveStats> CollectLive();
  void Stop();

  const ServerConfig config;
  const LeaseConfig lease_config;
  Clock& clock;
  std::atomic<bool> ready{false};
  CallCounter calls;
  std::string listen, agent_listen, metrics_listen;
  bool stopped = false;

  // Each is destroyed before what it uses.
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<Store> store;
  LeaseTable leases;
  ChecksumChecker checksums;  // wakes the loop: stopped by Stop
  CheckpointHolds holds;
  Publisher publisher;
  Housekeeper housekeeper;
  LogFiles logs;
  HistoryPruner pruner;
  StreamPump pump;
  StreamPump downloads;  // a file system that hangs must not hold up the agents' sessions
  SchedulerLoop loop;
  std::unique_ptr<grpc::Service> job_service, admin_service, checkpoint_service, agent_link;
  Endpoint client_endpoint, agent_endpoint;
  std::unique_ptr<Exposition> exposition;
};

absl::StatusOr<Coordinator::Impl::Endpoint> Coordinator::Impl::Build(
    const std::string& address, int max_message, std::vector<grpc::Service*> services,
    std::string* real_address) {
  Endpoint endpoint;
  ASSIGN_OR_RETURN(endpoint.listener, Listener::Open(address));
  if (!IsLoopback(address)) {
    SY_LOG(WARNING) << "listening without TLS beyond loopback; put it behind a network you trust "
                       "or a TLS proxy address="
                    << address;
  }
  grpc::ServerBuilder builder;
  endpoint.acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(max_message);
  builder.SetResourceQuota(grpc::ResourceQuota().SetMaxThreads(kMaxUnaryThreads));
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 4);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8192);
  endpoint.server = builder.BuildAndStart();
  if (endpoint.server == nullptr) {
    return absl::InternalError(absl::StrCat("start the gRPC server of ", address));
  }
  endpoint.listener->Start([acceptor = endpoint.acceptor.get()](int listener, UniqueFd connection) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
    parameters.listener_fd = listener;
    parameters.fd = connection.Release();
    acceptor->HandleNewConnection(&parameters);
  });
  *real_address = WithPort(address, endpoint.listener->port());
  return endpoint;
}

absl::Status Coordinator::Impl::Listen(const std::string& address,
                                       const std::string& agent_address) {
  const ServiceContext context{config,    lease_config, clock, *store, leases,   loop,  pump,
                               downloads, publisher,    holds, logs,   *metrics, ready, calls};
  job_service = MakeJobService(context);
  admin_service = MakeAdminService(context);
  checkpoint_service = MakeCheckpointService(context);
  agent_link = MakeAgentLink(context);
  grpc::EnableDefaultHealthCheckService(true);
  ASSIGN_OR_RETURN(agent_endpoint,
                   Build(agent_address, kMaxAgentMessageBytes, {agent_link.get()}, &agent_listen));
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  ASSIGN_OR_RETURN(
      client_endpoint,
      Build(address, kMaxClientMessageBytes,
            {job_service.get(), admin_service.get(), checkpoint_service.get()}, &listen));
  SetServing(false);
  return absl::OkStatus();
}

void Coordinator::Impl::SetServing(bool serving) {
  ready = serving;
  for (const auto& [server, service] :
       {std::pair<grpc::Server*, const char*>{client_endpoint.server.get(),
                                              "switchyard.v1.JobService"},
        {agent_endpoint.server.get(), "switchyard.v1.AgentLink"}}) {
    if (server == nullptr || server->GetHealthCheckService() == nullptr) continue;
    server->GetHealthCheckService()->SetServingStatus(serving);
    server->GetHealthCheckService()->SetServingStatus(service, serving);
  }
}

// On the store's writer thread: must not wait.
void Coordinator::Impl::OnCommit(const ChangeSet& changes) {
  for (const JobId& job : changes.jobs) pump.WakeTopic(TopicOf(job));
  for (const NodeId& node : changes.nodes) pump.WakeTopic(TopicOf(node));
  if (changes.schedule) loop.Wake();
  for (const JobChange& change : changes.job_changes) {
    if (!change.from) {
      const std::string& name = change.job.value();
      metrics->JobSubmitted(name.substr(9, name.find('/', 9) - 9));
    }
    if (change.to == JobState::kStarting && change.attempt == 1) {
      metrics->QueueWait(absl::ToDoubleSeconds(change.since_create));
    }
    if (change.to == JobState::kRunning) {
      metrics->StartTime(absl::ToDoubleSeconds(change.since_update));
    }
    if (IsFinal(change.to)) {
      metrics->JobFinished(std::string(Name(change.to)), change.failure == FailureReason::kNone
                                                             ? ""
                                                             : std::string(Name(change.failure)));
    }
  }
  for (const AttemptChange& change : changes.attempt_changes) {
    if (!IsFinal(change.to)) continue;
    metrics->AttemptEnded(std::string(Name(change.to)), change.failure == FailureReason::kNone
                                                            ? ""
                                                            : std::string(Name(change.failure)));
  }
  for (const CheckpointChange& change : changes.checkpoints) {
    if (change.to == CheckpointState::kCommitted) {
      metrics->CheckpointStored(static_cast<double>(change.size_bytes));
    } else if (change.to == CheckpointState::kDropped) {
      metrics->CheckpointRejected("DAMAGED");
    } else {
      metrics->CheckpointDeleted(change.by_request ? "request" : "retention");
    }
  }
  if (changes.stale_reports > 0) metrics->StaleReports(static_cast<double>(changes.stale_reports));
}

absl::StatusOr<LiveStats> Coordinator::Impl::CollectLive() {
  LiveStats stats;
  ASSIGN_OR_RETURN(const auto counts, store->CountJobs());
  for (const auto& [state, count] : counts) {
    stats.jobs[std::string(Name(state))] = static_cast<int>(count);
  }
  ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, store->ListNodes());
  stats.nodes = {{"reachable", 0}, {"unreachable", 0}, {"lost", 0}};
  const std::map<NodeId, bool> reachable = leases.Reachable();
  for (const NodeRecord& node : nodes) {
    const auto lease = reachable.find(node.id);
    const bool lost = node.lost || lease == reachable.end();
    stats.nodes[lost ? "lost" : lease->second ? "reachable" : "unreachable"] += 1;
  }
  ASSIGN_OR_RETURN(const ClusterSnapshot snapshot, loop.Snapshot());
  for (const NodeView& node : snapshot.nodes) {
    for (const DeviceView& device : node.devices) {
      for (const char* state : {"busy", "free"}) {
        stats.devices[{device.kind, state}] += (device.busy == (state[0] == 'b')) ? 1 : 0;
      }
    }
  }
  for (const auto& [node, time] : leases.LastHeartbeats()) stats.heartbeats[node.value()] = time;
  ASSIGN_OR_RETURN(const std::vector<JobRecord> live,
                   store->JobsIn({JobState::kStarting, JobState::kRunning, JobState::kStopping}));
  for (const JobRecord& job : live) {
    if (stats.live_jobs.size() == kMaxLiveJobs) break;
    ASSIGN_OR_RETURN(const StepRecord step, store->LatestStep(job.id));
    if (step.id == 0) continue;
    ASSIGN_OR_RETURN(const v1::StepMetrics metrics_of, StepMetricsOf(step));
    stats.live_jobs.push_back(StatsOf(job, metrics_of));
  }
  ASSIGN_OR_RETURN(const CheckpointTotals checkpoints, store->TotalCheckpoints());
  stats.checkpoints = static_cast<double>(checkpoints.count);
  stats.checkpoint_bytes = static_cast<double>(checkpoints.bytes);
  stats.watchers = pump.Count(StreamKind::kWatch);
  return stats;
}

void Coordinator::Impl::Stop() {
  if (std::exchange(stopped, true)) return;
  SetServing(false);
  loop.Stop();
  housekeeper.Stop();
  checksums.Stop();
  pruner.Stop();
  pump.Stop();
  downloads.Stop();
  if (!calls.AwaitNone(kCallGrace)) SY_LOG(WARNING) << "calls are cut off by the stop";
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoSeconds(kStreamGrace);
  for (Endpoint* endpoint : {&client_endpoint, &agent_endpoint}) {
    if (endpoint->listener != nullptr) endpoint->listener->Stop();
    if (endpoint->server != nullptr) endpoint->server->Shutdown(deadline);
  }
  exposition.reset();
}

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(const ServerConfig& config,
                                                                Clock& clock) {
  auto metrics = std::make_unique<Metrics>(Store::SqliteHasWalResetBug());
  StoreOptions options;
  options.folder = config.state_dir;
  options.retry_backoff = config.retry_backoff;
  options.ballast_bytes = kBallastBytes;
  options.on_commit_seconds = [m = metrics.get()](double seconds) { m->CommitDone(seconds); };
  ASSIGN_OR_RETURN(std::unique_ptr<Store> store, Store::Open(std::move(options), clock));
  if (Store::SqliteHasWalResetBug()) {
    SY_LOG(INFO) << "this SQLite has the WAL-reset bug; one thread writes and checkpoints, so that "
                    "it cannot happen. Do not open the database with another program";
  }
  auto impl = std::make_unique<Impl>(config, clock, std::move(metrics), std::move(store));
  std::unique_ptr<Coordinator> coordinator(new Coordinator(std::move(impl)));
  Impl& self = *coordinator->impl_;
  self.store->Subscribe([&self](const ChangeSet& changes) { self.OnCommit(changes); });
  RETURN_IF_ERROR(ClaimArtifactRoot(*self.store, config.artifact_root));
  RETURN_IF_ERROR(self.Listen(config.listen, config.agent_listen));
  self.metrics->SetLiveSource([&self]() -> LiveStats {
    absl::StatusOr<LiveStats> stats = self.CollectLive();
    if (stats.ok()) return *std::move(stats);
    SY_LOG(WARNING) << "scrape failed error=" << stats.status().message();
    return LiveStats{};
  });
  ASSIGN_OR_RETURN(self.exposition, Exposition::Start(config.metrics_listen, *self.metrics));
  self.metrics_listen = WithPort(config.metrics_listen, self.exposition->port());

  before_recovery.Pass();
  RETURN_IF_ERROR(RestoreState(*self.store, self.leases, self.publisher));
  self.loop.Start(self.store->held_after_restore() ? self.leases.LongestLeft()
                                                   : absl::ZeroDuration());
  self.pruner.Start();
  self.housekeeper.Start();
  before_serving.Pass();
  self.SetServing(true);
  SY_LOG(INFO) << "serving listen=" << self.listen << " agent_listen=" << self.agent_listen
               << " metrics_listen=" << self.metrics_listen << " epoch=" << self.store->epoch();
  return coordinator;
}

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() { Stop(); }
void Coordinator::Stop() { impl_->Stop(); }
const std::string& Coordinator::listen() const { return impl_->listen; }
const std::string& Coordinator::agent_listen() const { return impl_->agent_listen; }
const std::string& Coordinator::metrics_listen() const { return impl_->metrics_listen; }

}  // namespace switchyard
