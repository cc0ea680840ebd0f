// JobService: decode, call, encode. Unary calls are synchronous, streams are callbacks
// (stream_pump.h says why).
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <limits>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/failpoint.h"
#include "base/status_macros.h"
#include "server/api/context.h"
#include "server/api/convert.h"
#include "server/api/job_streams.h"
#include "server/api/page.h"
#include "server/api/validate.h"
#include "server/scheduler/policy.h"
#include "switchyard/v1/job_service.grpc.pb.h"
#include "worker/trainer/models/memory_plan.h"
#include "worker/trainer/models/weight_names.h"

namespace switchyard {
namespace {

Failpoint before_create("create_job.before_store", FailpointKind::kEvent);
Failpoint after_create("create_job.before_answer", FailpointKind::kEvent);
Failpoint before_cancel("cancel_job.before_store", FailpointKind::kEvent);
Failpoint after_cancel("cancel_job.before_answer", FailpointKind::kEvent);

constexpr size_t kMaxRequestId = 64;
constexpr absl::Duration kDefaultGrace = absl::Seconds(30);
constexpr absl::Duration kPauseGrace = absl::Seconds(60);

// Map entries in a fixed order, so that equal requests have equal bytes.
std::string Canonical(const google::protobuf::Message& message) {
  std::string out;
  {
    google::protobuf::io::StringOutputStream stream(&out);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return out;
}

template <typename Request>
absl::StatusOr<RequestKey> MakeKey(const char* method, const std::string& project,
                                   const Request& request) {
  if (request.request_id().size() > kMaxRequestId) {
    return MakeError(absl::StatusCode::kInvalidArgument, "REQUEST_ID_INVALID",
                     absl::StrCat("request_id has ", request.request_id().size(),
                                  " bytes, at most ", kMaxRequestId, "; a UUID4 is meant"));
  }
  Request payload = request;
  payload.clear_request_id();
  return RequestKey{project, method, request.request_id(), Canonical(payload)};
}

// Of a job's id, "projects/p/jobs/j".
std::string ProjectOf(const JobId& id) { return id.value().substr(9, id.value().find('/', 9) - 9); }

template <typename Request>
absl::StatusOr<absl::Duration> GraceOf(absl::string_view what, const Request& request,
                                       absl::Duration usual) {
  const absl::Duration grace =
      request.has_grace_period() ? FromProto(request.grace_period()) : usual;
  if (grace >= absl::ZeroDuration() && grace <= absl::Hours(24)) return grace;
  return MakeError(absl::StatusCode::kInvalidArgument, "GRACE_PERIOD_INVALID",
                   absl::StrCat(what, ": grace_period is ", absl::FormatDuration(grace),
                                ", must be between 0 and 24h"));
}

std::string RandomHex(int digits) {
  absl::BitGen gen;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(gen), absl::Uniform<uint64_t>(gen))
      .substr(0, static_cast<size_t>(digits));
}

MemoryPlan MemoryOf(const v1::JobSpec& spec, const ModelConfig& model) {
  const auto or_one = [](int32_t value) { return value == 0 ? 1 : value; };
  MemoryPlanInput in;
  in.world_size = spec.parallel().num_ranks();
  in.ep_size = or_one(spec.parallel().ep_size());
  in.dp_replicate_size = or_one(spec.parallel().dp_replicate_size());
  const v1::DataSpec& data = spec.data();
  const bool packed =
      data.packing() == v1::PACKING_SEQUENTIAL || data.packing() == v1::PACKING_BEST_FIT;
  const int64_t row =
      packed && data.pack_length() > 0 ? data.pack_length() : int64_t{data.seq_length()};
  in.microbatch_tokens = spec.batch().local_batch_size() * row;
  const int64_t rows_at_once = int64_t{spec.batch().local_batch_size()} * in.world_size;
  if (rows_at_once > 0) in.microbatches = spec.batch().global_batch_size() / rows_at_once;
  in.weight_bytes = spec.model().dtype() == "bfloat16" ? 2 : 4;
  in.moment_bytes = spec.optimizer().moment_dtype() == "bfloat16" ? 2 : 4;
  in.gradient_bytes = spec.optimizer().gradient_dtype() == "bfloat16" ? 2 : 4;
  in.exact_master = !spec.optimizer().has_exact_master() || spec.optimizer().exact_master();
  in.offload = spec.model().activation_memory() == v1::ACTIVATION_MEMORY_OFFLOAD;
  in.full_recompute =
      in.offload || spec.model().activation_memory() == v1::ACTIVATION_MEMORY_FULL_RECOMPUTE;
  in.on_gpu = !spec.parallel().cpu_only();
  in.reshard_after_forward = spec.parallel().reshard_after_forward();
  in.loss_chunk_tokens = spec.model().loss_chunk_tokens();
  return PlanMemory(model, in);
}

using StreamingBase = v1::JobService::WithCallbackMethod_WatchJob<
    v1::JobService::WithCallbackMethod_ReadLogs<v1::JobService::Service>>;

class JobServiceImpl final : public StreamingBase {
 public:
  explicit JobServiceImpl(const ServiceContext& context) : context_(context) {}

  grpc::Status CreateJob(grpc::ServerContext*, const v1::CreateJobRequest* request,
                         v1::CreateJobResponse* response) override {
    return context_.Unary("CreateJob", [&] { return Create(*request, *response); });
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                      v1::GetJobResponse* response) override {
    return context_.Unary("GetJob", [&] { return Get(*request, *response); });
  }
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override {
    return context_.Unary("ListJobs", [&] { return List(*request, *response); });
  }
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request,
                         v1::CancelJobResponse* response) override {
    return context_.Unary("CancelJob", [&] { return Cancel(*request, *response); });
  }
  grpc::Status PauseJob(grpc::ServerContext*, const v1::PauseJobRequest* request,
                        v1::PauseJobResponse* response) override {
    return context_.Unary("PauseJob", [&] { return Pause(*request, *response); });
  }
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest* request,
                         v1::ResumeJobResponse* response) override {
    return context_.Unary("ResumeJob", [&] { return Resume(*request, *response); });
  }
  grpc::Status RetryJob(grpc::ServerContext*, const v1::RetryJobRequest* request,
                        v1::RetryJobResponse* response) override {
    return context_.Unary("RetryJob", [&] { return Retry(*request, *response); });
  }
  grpc::Status PlanJob(grpc::ServerContext*, const v1::PlanJobRequest* request,
                       v1::PlanJobResponse* response) override {
    return context_.Unary("PlanJob", [&] { return MakePlan(*request, *response); });
  }
  grpc::ServerWriteReactor<v1::WatchJobResponse>* WatchJob(
      grpc::CallbackServerContext* call, const v1::WatchJobRequest* request) override {
    return StartWatch(context_, call, *request);
  }
  grpc::ServerWriteReactor<v1::ReadLogsResponse>* ReadLogs(
      grpc::CallbackServerContext* call, const v1::ReadLogsRequest* request) override {
    return StartReadLogs(context_, call, *request);
  }

 private:
  absl::Status Create(const v1::CreateJobRequest& request, v1::CreateJobResponse& response) {
    ASSIGN_OR_RETURN(const std::string project, ParseParent(request.parent()));
    std::vector<FieldViolation> faults = CheckJobFields(request.job());
    if (!request.job_id().empty() && !IsResourceId(request.job_id())) {
      faults.push_back(
          {"job_id", absl::StrCat("'", request.job_id(), "' must be 1 to 63 of a-z, 0-9 and -")});
    }
    SpecCheck check = CheckSpec(request.job().spec());
    faults.insert(faults.end(), check.violations.begin(), check.violations.end());
    if (!faults.empty()) return MakeBadRequest("JOB_INVALID", "create job", faults);

    JobRecord job;
    const std::string id =
        request.job_id().empty() ? absl::StrCat("job-", RandomHex(10)) : request.job_id();
    job.id = JobId(absl::StrCat("projects/", project, "/jobs/", id));
    job.uid = RandomHex(32);
    job.project = project;
    job.display_name = request.job().display_name();
    job.labels.insert(request.job().labels().begin(), request.job().labels().end());
    job.spec = Canonical(request.job().spec());
    job.recipe = request.job().recipe();
    job.needs = NeedsOf(request.job().spec());
    if (request.validate_only()) return ShowValidated(job, request, response);

    ASSIGN_OR_RETURN(const RequestKey key, MakeKey("CreateJob", project, request));
    before_create.Pass();
    ASSIGN_OR_RETURN(const JobRecord stored, context_.store.CreateJob(job, key));
    after_create.Pass();
    ASSIGN_OR_RETURN(*response.mutable_job(), ShowJob(context_.store, stored));
    return absl::OkStatus();
  }

  // The same checks and errors as a real creation, nothing stored, nothing generated shown.
  absl::Status ShowValidated(const JobRecord& job, const v1::CreateJobRequest& request,
                             v1::CreateJobResponse& response) {
    if (!request.job_id().empty()) {
      const absl::Status exists = context_.store.GetJob(job.id).status();
      if (exists.ok()) {
        return MakeError(absl::StatusCode::kAlreadyExists, "JOB_EXISTS",
                         absl::StrCat("create job ", job.id.value(), ": a job has this name"),
                         {{"job", job.id.value()}});
      }
      if (!absl::IsNotFound(exists)) return exists;
      response.mutable_job()->set_name(job.id.value());
    }
    v1::Job& out = *response.mutable_job();
    out.set_display_name(job.display_name);
    *out.mutable_labels() = request.job().labels();
    *out.mutable_spec() = request.job().spec();
    out.set_recipe(job.recipe);
    return absl::OkStatus();
  }

  absl::Status Get(const v1::GetJobRequest& request, v1::GetJobResponse& response) {
    ASSIGN_OR_RETURN(const JobId id, ParseJobName(request.name()));
    ASSIGN_OR_RETURN(const JobRecord job, context_.store.GetJob(id));
    ASSIGN_OR_RETURN(const auto attempts, context_.store.ListAttempts(id));
    ASSIGN_OR_RETURN(*response.mutable_job(), ShowJob(context_.store, job));
    for (const AttemptRecord& attempt : attempts) *response.add_attempts() = ToProto(attempt);
    return absl::OkStatus();
  }

  absl::Status List(const v1::ListJobsRequest& request, v1::ListJobsResponse& response) {
    JobFilter filter;
    ASSIGN_OR_RETURN(filter.project, ParseParent(request.parent()));
    ASSIGN_OR_RETURN(const int page_size, PageSize(request.page_size()));
    v1::ListJobsRequest query = request;
    query.clear_page_size();
    query.clear_page_token();
    const std::string fixed = Canonical(query);
    ASSIGN_OR_RETURN(filter.before_seq, ParsePageToken(request.page_token(), fixed));
    for (const int state : request.states()) {
      if (!v1::Job::State_IsValid(state) || state == v1::Job::STATE_UNSPECIFIED) {
        return MakeError(absl::StatusCode::kInvalidArgument, "STATE_INVALID",
                         absl::StrCat("list jobs: state ", state, " is unknown"));
      }
      filter.states.push_back(static_cast<JobState>(state));
    }
    std::sort(filter.states.begin(), filter.states.end());
    filter.states.erase(std::unique(filter.states.begin(), filter.states.end()),
                        filter.states.end());
    filter.labels.insert(request.labels().begin(), request.labels().end());
    filter.limit = page_size + 1;  // one more tells whether there is a next page
    ASSIGN_OR_RETURN(std::vector<JobRecord> jobs, context_.store.ListJobs(filter));
    if (jobs.size() > static_cast<size_t>(page_size)) {
      jobs.pop_back();
      response.set_next_page_token(MakePageToken(fixed, jobs.back().seq));
    }
    for (const JobRecord& job : jobs) {
      ASSIGN_OR_RETURN(*response.add_jobs(), ShowJob(context_.store, job));
    }
    return absl::OkStatus();
  }

  absl::Status Cancel(const v1::CancelJobRequest& request, v1::CancelJobResponse& response) {
    ASSIGN_OR_RETURN(const JobId id, ParseJobName(request.name()));
    ASSIGN_OR_RETURN(const absl::Duration grace, GraceOf("cancel job", request, kDefaultGrace));
    ASSIGN_OR_RETURN(const RequestKey key, MakeKey("CancelJob", ProjectOf(id), request));
    before_cancel.Pass();
    ASSIGN_OR_RETURN(const JobRecord job, context_.store.CancelJob(id, grace, key));
    after_cancel.Pass();
    ASSIGN_OR_RETURN(*response.mutable_job(), ShowJob(context_.store, job));
    return absl::OkStatus();
  }

  absl::Status Pause(const v1::PauseJobRequest& request, v1::PauseJobResponse& response) {
    ASSIGN_OR_RETURN(const JobId id, ParseJobName(request.name()));
    ASSIGN_OR_RETURN(const absl::Duration grace, GraceOf("pause job", request, kPauseGrace));
    ASSIGN_OR_RETURN(const RequestKey key, MakeKey("PauseJob", ProjectOf(id), request));
    ASSIGN_OR_RETURN(const JobRecord job, context_.store.PauseJob(id, grace, key));
    ASSIGN_OR_RETURN(*response.mutable_job(), ShowJob(context_.store, job));
    return absl::OkStatus();
  }

  absl::Status Resume(const v1::ResumeJobRequest& request, v1::ResumeJobResponse& response) {
    ASSIGN_OR_RETURN(const JobId id, ParseJobName(request.name()));
    ASSIGN_OR_RETURN(const RequestKey key, MakeKey("ResumeJob", ProjectOf(id), request));
    ASSIGN_OR_RETURN(const JobRecord job, context_.store.ResumeJob(id, key));
    ASSIGN_OR_RETURN(*response.mutable_job(), ShowJob(context_.store, job));
    return absl::OkStatus();
  }

  absl::Status Retry(const v1::RetryJobRequest& request, v1::RetryJobResponse& response) {
    ASSIGN_OR_RETURN(const JobId old_id, ParseJobName(request.name()));
    if (!request.job_id().empty() && !IsResourceId(request.job_id())) {
      return MakeBadRequest(
          "JOB_INVALID", "retry job",
          {{"job_id", absl::StrCat("'", request.job_id(), "' must be 1 to 63 of a-z, 0-9 and -")}});
    }
    ASSIGN_OR_RETURN(const JobRecord old, context_.store.GetJob(old_id));
    if (old.state != JobState::kFailed && old.state != JobState::kCancelled) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "NOT_RETRYABLE",
                       absl::StrCat("retry job ", old_id.value(), ": it is ", Name(old.state),
                                    "; a job that has FAILED or was CANCELLED can be retried"),
                       {{"job", old_id.value()}, {"state", std::string(Name(old.state))}});
    }
    v1::JobSpec spec;
    if (!spec.ParseFromString(old.spec)) {
      return absl::InternalError("bug: a stored job spec cannot be read");
    }
    // UNAVAILABLE while the checksums are being read: the client asks again.
    ASSIGN_OR_RETURN(const std::string newest, context_.publisher.ResumePath(old));
    if (!newest.empty()) spec.mutable_checkpoint()->set_restore_from(newest);

    JobRecord job;
    const std::string& name = old_id.value();
    job.project = old.project;
    job.id = JobId(absl::StrCat(
        "projects/", job.project, "/jobs/",
        request.job_id().empty() ? absl::StrCat("job-", RandomHex(10)) : request.job_id()));
    job.uid = RandomHex(32);
    job.display_name = old.display_name;
    job.labels = old.labels;
    job.labels["retry-of"] = name.substr(name.rfind('/') + 1);
    job.spec = Canonical(spec);
    job.recipe = old.recipe;
    job.needs = NeedsOf(spec);
    ASSIGN_OR_RETURN(const RequestKey key, MakeKey("RetryJob", job.project, request));
    ASSIGN_OR_RETURN(const JobRecord stored, context_.store.CreateJob(job, key));
    ASSIGN_OR_RETURN(*response.mutable_job(), ShowJob(context_.store, stored));
    return absl::OkStatus();
  }

  absl::Status MakePlan(const v1::PlanJobRequest& request, v1::PlanJobResponse& response) {
    RETURN_IF_ERROR(ParseParent(request.parent()).status());
    const v1::JobSpec& spec = request.spec();
    const SpecCheck check = CheckSpec(spec);
    if (!check.violations.empty()) {
      return MakeBadRequest("JOB_INVALID", "plan job", check.violations);
    }
    const int ranks = spec.parallel().num_ranks();
    response.set_ranks_wanted(ranks);
    response.set_micro_batches_per_step(spec.batch().global_batch_size() /
                                        (int64_t{spec.batch().local_batch_size()} * ranks));

    // The scheduler's own question, with this job last of its priority.
    ASSIGN_OR_RETURN(ClusterSnapshot snapshot, context_.loop.Snapshot());
    const JobId self("projects/-/jobs/-");  // no job has such a name
    WaitingJob waiting;
    waiting.id = self;
    waiting.num_ranks = ranks;
    waiting.cpu_only = spec.parallel().cpu_only();
    waiting.not_before = -absl::InfiniteDuration();
    waiting.priority = spec.schedule().priority();
    const auto place =
        std::find_if(snapshot.waiting.begin(), snapshot.waiting.end(),
                     [&](const WaitingJob& w) { return w.priority < waiting.priority; });
    response.set_queue_position(static_cast<int32_t>(place - snapshot.waiting.begin()));
    snapshot.waiting.insert(place, waiting);
    const std::vector<KindCount> kinds =
        EligibleKinds(CountDevices(snapshot.nodes), spec.parallel().cpu_only());
    for (const KindCount& kind : kinds) {
      response.set_fits_cluster(response.fits_cluster() || kind.total >= ranks);
      response.set_ranks_total(std::max(response.ranks_total(), kind.total));
      response.set_ranks_free(std::max(response.ranks_free(), kind.free));
    }
    const Plan plan = Decide(snapshot, context_.clock.Monotonic());
    for (const GangPlacement& gang : plan.placements) {
      if (gang.job == self) response.set_could_start_now(true);
    }
    for (const PendingNote& note : plan.pending) {
      if (note.job == self) {
        response.add_notes(absl::StrCat(Name(note.reason), ": the gang needs ", ranks,
                                        " ranks; of ", response.ranks_total(), " registered, ",
                                        response.ranks_free(), " are free"));
      }
    }
    ASSIGN_OR_RETURN(const int64_t available, SmallestDevice(kinds));
    v1::PlanJobResponse::Memory& memory = *response.mutable_memory();
    memory.set_available(available);
    if (!check.model) {
      response.add_notes(absl::StrCat("memory is not known: the coordinator cannot read ",
                                      spec.model().path(), "/config.json"));
      return absl::OkStatus();
    }
    response.set_parameters(CountParameters(*check.model));
    response.set_active_parameters(CountActiveParameters(*check.model));
    const MemoryPlan bytes = MemoryOf(spec, *check.model);
    memory.set_weights(bytes.weights);
    memory.set_gradients(bytes.gradients);
    memory.set_optimizer(bytes.optimizer);
    memory.set_activations(bytes.activations);
    memory.set_buffers(bytes.buffers);
    memory.set_total(bytes.total());
    response.set_fits_memory(available > 0 && bytes.total() <= available);
    if (available == 0) {
      response.add_notes(
          "whether the memory is enough is not known: no eligible device is "
          "registered that says how much it has");
    }
    return absl::OkStatus();
  }

  // Bytes of the smallest device that the job might get; 0: unknown.
  absl::StatusOr<int64_t> SmallestDevice(const std::vector<KindCount>& kinds) {
    ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, context_.store.ListNodes());
    int64_t smallest = std::numeric_limits<int64_t>::max();
    for (const NodeRecord& node : nodes) {
      for (const DeviceRecord& device : node.devices) {
        const bool eligible = std::any_of(
            kinds.begin(), kinds.end(), [&](const KindCount& k) { return k.kind == device.kind; });
        if (!node.lost && eligible) smallest = std::min(smallest, device.memory_bytes);
      }
    }
    return smallest == std::numeric_limits<int64_t>::max() ? 0 : smallest;
  }

  const ServiceContext context_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeJobService(const ServiceContext& context) {
  return std::make_unique<JobServiceImpl>(context);
}

}  // namespace switchyard
