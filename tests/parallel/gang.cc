#include "tests/parallel/gang.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "worker/trainer/checkpoint/or_throw.h"

extern char** environ;

namespace switchyard {

int FreePort() {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  return ntohs(address.sin_port);
}

Process::Process(std::vector<std::string> args, const std::string& output, UniqueFd link) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, (output + ".stderr").c_str(),
                                   O_CREAT | O_TRUNC | O_WRONLY, 0600);
  if (link.valid()) posix_spawn_file_actions_adddup2(&actions, link.get(), 3);
  const char* moved = std::getenv("SWITCHYARD_TRAINER");
  args.insert(args.begin(), moved != nullptr ? moved : TRAINER_BINARY);
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
}

Process::~Process() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Process::Signal(int signal) { kill(pid_, signal); }

int Process::Wait() {
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

GangFolder::GangFolder(bool for_kernels) { MakeTinyData(folder_.path(), for_kernels); }

TinyJob GangFolder::Job(const std::string& name, Gang gang) const {
  TinyJob job;
  job.folder = folder_.path();
  job.job_dir = folder_.path() + "/" + name;
  job.gang = gang;
  job.master_port = FreePort();
  std::filesystem::create_directories(job.job_dir);
  return job;
}

std::string GangFolder::Output(const TinyJob& job, int rank) const {
  return absl::StrCat(job.job_dir, "/rank-", rank, ".out");
}

std::unique_ptr<Process> GangFolder::Start(const TinyJob& job, int rank) const {
  return Start(job, rank, MakeFrame(job, rank));
}

std::unique_ptr<Process> GangFolder::Start(const TinyJob& job, int rank,
                                           const ConfigFrame& frame) const {
  const std::string config = absl::StrCat(job.job_dir, "/config-", rank, ".json");
  std::ofstream(config) << DumpJson(ToJson(AgentFrame(frame)));
  return std::make_unique<Process>(std::vector<std::string>{"--config", config}, Output(job, rank));
}

std::vector<int> GangFolder::Run(const TinyJob& job) const {
  std::vector<std::unique_ptr<Process>> ranks;
  for (int rank = 0; rank < job.gang.world; ++rank) ranks.push_back(Start(job, rank));
  std::vector<int> codes;
  for (auto& rank : ranks) codes.push_back(rank->Wait());
  return codes;
}

std::vector<RankFrame> GangFolder::Frames(const TinyJob& job, int rank) const {
  std::ifstream file(Output(job, rank));
  std::vector<RankFrame> frames;
  for (std::string line; std::getline(file, line);) {
    frames.push_back(OrThrow(ParseRankFrame(OrThrow(ParseJson(line, "frame")))));
  }
  return frames;
}

RunReport GangFolder::Report(const TinyJob& job) const {
  RunReport report;
  for (const RankFrame& frame : Frames(job, 0)) report.Add(frame);
  return report;
}

ErrorFrame GangFolder::Error(const TinyJob& job, int rank) const {
  const std::vector<RankFrame> frames = Frames(job, rank);
  const auto* error = frames.empty() ? nullptr : std::get_if<ErrorFrame>(&frames.back());
  EXPECT_NE(error, nullptr) << "rank " << rank << " sent " << frames.size() << " frames";
  return error == nullptr ? ErrorFrame{} : *error;
}

}  // namespace switchyard
