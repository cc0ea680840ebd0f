#include "server/lifecycle.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

using Phase = PlacementPhase;

GangView MakeGang(JobState job, AttemptState attempt, std::vector<Phase> phases) {
  GangView gang;
  gang.job_state = job;
  gang.attempt.id = {JobId("projects/p/jobs/j"), 1};
  gang.attempt.state = attempt;
  gang.attempt.started = attempt >= AttemptState::kStarting && attempt < AttemptState::kStopping;
  for (size_t i = 0; i < phases.size(); ++i) {
    PlacementRecord p;
    p.node = NodeId(std::string(1, static_cast<char>('a' + i)));
    p.phase = phases[i];
    p.succeeded = phases[i] == Phase::kFinished;
    gang.placements.push_back(p);
  }
  return gang;
}

FailureRecord Failure(FailureReason reason) {
  FailureRecord failure;
  failure.reason = reason;
  failure.message = "it broke";
  return failure;
}

TEST(LifecycleTest, WaitsForTheSlowestNode) {
  EXPECT_TRUE(NextHop(MakeGang(JobState::kStarting, AttemptState::kReserved,
                               {Phase::kDispatched, Phase::kReserved}))
                  .none());
  EXPECT_TRUE(NextHop(MakeGang(JobState::kStarting, AttemptState::kDispatched,
                               {Phase::kPrepared, Phase::kDispatched}))
                  .none());
  EXPECT_TRUE(NextHop(MakeGang(JobState::kStarting, AttemptState::kStarting,
                               {Phase::kRunning, Phase::kPrepared}))
                  .none());
  EXPECT_TRUE(NextHop(MakeGang(JobState::kRunning, AttemptState::kRunning,
                               {Phase::kFinished, Phase::kRunning}))
                  .none());
}

TEST(LifecycleTest, GoesOnWhenAllNodesAreThere) {
  const GangHop dispatched = NextHop(MakeGang(JobState::kStarting, AttemptState::kReserved,
                                              {Phase::kDispatched, Phase::kPrepared}));
  EXPECT_EQ(dispatched.attempt, AttemptState::kDispatched);
  EXPECT_EQ(dispatched.job, absl::nullopt);
  const GangHop start = NextHop(MakeGang(JobState::kStarting, AttemptState::kDispatched,
                                         {Phase::kPrepared, Phase::kPrepared}));
  EXPECT_EQ(start.attempt, AttemptState::kStarting);
  const GangHop run = NextHop(
      MakeGang(JobState::kStarting, AttemptState::kStarting, {Phase::kRunning, Phase::kFinished}));
  EXPECT_EQ(run.attempt, AttemptState::kRunning);
  EXPECT_EQ(run.job, JobState::kRunning);
}

TEST(LifecycleTest, SucceedsOnlyWithAFinalCheckpoint) {
  GangView gang =
      MakeGang(JobState::kRunning, AttemptState::kRunning, {Phase::kFinished, Phase::kFinished});
  GangHop hop = NextHop(gang);
  EXPECT_EQ(hop.job, JobState::kFailed);
  EXPECT_EQ(hop.failure->reason, FailureReason::kCheckpointInvalid);
  gang.final_checkpoint = true;
  hop = NextHop(gang);
  EXPECT_EQ(hop.job, JobState::kSucceeded);
  EXPECT_EQ(hop.attempt, AttemptState::kSucceeded);
}

TEST(LifecycleTest, ARefusedCheckpointGivesWayToTheOneBefore) {
  GangView gang = MakeGang(JobState::kStarting, AttemptState::kStarting, {Phase::kFinished});
  gang.placements[0].succeeded = false;
  gang.attempt.failure = Failure(FailureReason::kCheckpointInvalid);
  gang.attempt.resume_from = "/artifacts/step-20";
  gang.committed_step = 20;
  EXPECT_EQ(NextHop(gang).job, JobState::kFailed) << "there is none before it";
  EXPECT_FALSE(NextHop(gang).reject_checkpoint) << "nothing is given up for nothing";
  gang.older_checkpoint = true;
  const GangHop hop = NextHop(gang);
  EXPECT_TRUE(hop.reject_checkpoint);
  EXPECT_EQ(hop.job, JobState::kQueued);
  EXPECT_EQ(hop.retry->retries_used, 0);
  EXPECT_TRUE(hop.retry->fell_back);

  gang.retry = *hop.retry;
  EXPECT_EQ(NextHop(gang).job, JobState::kFailed) << "two in a row: the files are not at fault";
  EXPECT_FALSE(NextHop(gang).reject_checkpoint);
  gang.retry = {};
  gang.stepped = true;
  EXPECT_FALSE(NextHop(gang).reject_checkpoint) << "it was read: one of its own was refused";
}

TEST(LifecycleTest, StopsTheRestOfTheGangAtTheFirstFailure) {
  GangView gang =
      MakeGang(JobState::kRunning, AttemptState::kRunning, {Phase::kRunning, Phase::kRunning});
  gang.attempt.failure = Failure(FailureReason::kTrainerSignal);
  const GangHop hop = NextHop(gang);
  EXPECT_EQ(hop.attempt, AttemptState::kStopping);
  EXPECT_EQ(hop.job, absl::nullopt);
  EXPECT_THAT(hop.message, HasSubstr("TRAINER_SIGNAL: it broke"));
}

TEST(LifecycleTest, RetriesInfrastructureWhileRetriesAreLeft) {
  GangView gang =
      MakeGang(JobState::kRunning, AttemptState::kStopping, {Phase::kFinished, Phase::kFinished});
  gang.attempt.started = true;
  gang.attempt.failure = Failure(FailureReason::kTrainerSignal);
  gang.needs.max_retries = 2;
  gang.retry.retries_used = 1;
  GangHop hop = NextHop(gang);
  EXPECT_EQ(hop.job, JobState::kQueued);
  EXPECT_EQ(hop.attempt, AttemptState::kFailed);
  ASSERT_TRUE(hop.retry.has_value());
  EXPECT_EQ(hop.retry->retries_used, 2);
  gang.retry = *hop.retry;
  hop = NextHop(gang);
  EXPECT_EQ(hop.job, JobState::kFailed);
  EXPECT_EQ(hop.failure->reason, FailureReason::kTrainerSignal);
}

TEST(LifecycleTest, NeverRetriesTheUsersFault) {
  GangView gang = MakeGang(JobState::kStarting, AttemptState::kStopping, {Phase::kFinished});
  gang.attempt.failure = Failure(FailureReason::kDataInvalid);
  gang.needs.max_retries = 5;
  EXPECT_EQ(NextHop(gang).job, JobState::kFailed);
}

TEST(LifecycleTest, LosingANodeBeforeTheStartUsesNoRetry) {
  GangView gang = MakeGang(JobState::kStarting, AttemptState::kStopping, {Phase::kLost});
  gang.attempt.failure = Failure(FailureReason::kNodeLost);
  const GangHop hop = NextHop(gang);
  EXPECT_EQ(hop.attempt, AttemptState::kReleased);
  EXPECT_EQ(hop.job, JobState::kQueued);
  EXPECT_EQ(hop.retry->retries_used, 0);
  EXPECT_EQ(hop.retry->no_progress, 0);
}

TEST(LifecycleTest, ACancelWinsOverAGoodEndThatComesAfterIt) {
  GangView gang = MakeGang(JobState::kStopping, AttemptState::kStopping, {Phase::kFinished});
  gang.attempt.started = true;
  gang.stop_target = StopTarget::kCancelled;
  gang.final_checkpoint = true;
  const GangHop hop = NextHop(gang);
  EXPECT_EQ(hop.job, JobState::kCancelled);
  EXPECT_EQ(hop.attempt, AttemptState::kStopped);
}

TEST(LifecycleTest, AnAgentThatStopsByItselfIsDrained) {
  GangView gang = MakeGang(JobState::kRunning, AttemptState::kRunning, {Phase::kFinished});
  gang.placements[0].succeeded = false;
  gang.placements[0].stopped = true;
  EXPECT_EQ(NextHop(gang).failure->reason, FailureReason::kDrained);
}

// Whatever is known about a gang, every hop is legal, and hops end.
TEST(LifecycleTest, EveryHopFromEveryViewIsLegal) {
  const Phase phases[] = {Phase::kReserved, Phase::kDispatched, Phase::kPrepared,
                          Phase::kRunning,  Phase::kFinished,   Phase::kLost};
  const std::pair<JobState, AttemptState> states[] = {
      {JobState::kStarting, AttemptState::kReserved},
      {JobState::kStarting, AttemptState::kDispatched},
      {JobState::kStarting, AttemptState::kStarting},
      {JobState::kRunning, AttemptState::kRunning},
      {JobState::kStopping, AttemptState::kRunning},
      {JobState::kStopping, AttemptState::kReserved},
      {JobState::kRunning, AttemptState::kStopping},
      {JobState::kStopping, AttemptState::kStopping}};
  int seen = 0;
  for (const auto& [job, attempt] : states) {
    for (Phase a : phases) {
      for (Phase b : phases) {
        for (int bits = 0; bits < 64; ++bits) {
          GangView gang = MakeGang(job, attempt, {a, b});
          // Only a stopping attempt may or may not have been started.
          if (attempt == AttemptState::kStopping) gang.attempt.started = (bits & 8) != 0;
          constexpr StopTarget kTargets[] = {StopTarget::kCancelled, StopTarget::kPaused,
                                             StopTarget::kQueued, StopTarget::kFailed};
          gang.stop_target = kTargets[bits >> 4];
          gang.needs.max_retries = bits & 1;
          gang.final_checkpoint = (bits & 2) != 0;
          // An attempt stops because the job does, or because something failed.
          const bool must_fail = attempt == AttemptState::kStopping && job != JobState::kStopping;
          if (must_fail || (bits & 4) != 0) {
            gang.attempt.failure = Failure(FailureReason::kHang);
          }
          int hops = 0;
          for (GangHop hop = NextHop(gang); !hop.none(); hop = NextHop(gang)) {
            ASSERT_LT(++hops, 8);
            ++seen;
            if (hop.attempt) {
              ASSERT_TRUE(IsLegal(gang.attempt.state, *hop.attempt))
                  << Name(gang.attempt.state) << " to " << Name(*hop.attempt);
              gang.attempt.state = *hop.attempt;
              gang.attempt.started |= *hop.attempt == AttemptState::kStarting;
            }
            if (hop.job) {
              ASSERT_TRUE(IsLegal(gang.job_state, *hop.job))
                  << Name(gang.job_state) << " to " << Name(*hop.job);
              gang.job_state = *hop.job;
            }
            if (hop.failure) gang.attempt.failure = hop.failure;
          }
          // A closed gang ends its attempt: nothing waits for ever.
          if (a >= Phase::kFinished && b >= Phase::kFinished) {
            ASSERT_TRUE(IsFinal(gang.attempt.state)) << Name(gang.attempt.state);
          }
        }
      }
    }
  }
  EXPECT_GT(seen, 1000);
}

TEST(LifecycleTest, AGangThatEndsWellBeforeItHearsOfAPauseHasSucceeded) {
  GangView gang = MakeGang(JobState::kStopping, AttemptState::kStopping, {Phase::kFinished});
  gang.attempt.started = true;
  gang.final_checkpoint = true;
  for (const StopTarget target : {StopTarget::kPaused, StopTarget::kQueued}) {
    gang.stop_target = target;
    EXPECT_EQ(NextHop(gang).job, JobState::kSucceeded);
    EXPECT_EQ(NextHop(gang).attempt, AttemptState::kSucceeded);
  }
  gang.placements[0].succeeded = false;
  gang.placements[0].stopped = true;
  EXPECT_EQ(NextHop(gang).job, JobState::kQueued);
  EXPECT_EQ(NextHop(gang).attempt, AttemptState::kStopped);
}

TEST(LifecycleTest, APreemptedGangUsesNoBudgetWhateverItsRanksSay) {
  GangView gang = MakeGang(JobState::kStopping, AttemptState::kStopping, {Phase::kFinished});
  gang.attempt.started = true;
  gang.attempt.failure = Failure(FailureReason::kNcclError);
  gang.placements[0].succeeded = false;
  gang.stop_target = StopTarget::kQueued;
  EXPECT_EQ(NextHop(gang).job, JobState::kQueued);
  EXPECT_EQ(NextHop(gang).retry, absl::nullopt);
}

TEST(LifecycleTest, ADeadlineFailsTheJobWithItsReason) {
  GangView gang = MakeGang(JobState::kStopping, AttemptState::kStopping, {Phase::kFinished});
  gang.attempt.started = true;
  gang.stop_target = StopTarget::kFailed;
  gang.stop_message = "it has held devices for 1h";
  const GangHop hop = NextHop(gang);
  EXPECT_EQ(hop.job, JobState::kFailed);
  ASSERT_TRUE(hop.failure.has_value());
  EXPECT_EQ(hop.failure->reason, FailureReason::kDeadline);
  EXPECT_EQ(hop.failure->message, "it has held devices for 1h");
}

}  // namespace
}  // namespace switchyard
