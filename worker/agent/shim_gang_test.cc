// What an agent does about shims that do not do their part; the rest is tested in tests/agent.
#include "worker/agent/shim_gang.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "worker/shim/attempt_files.h"

namespace switchyard {
namespace {

class ShimGangTest : public testing::Test {
 protected:
  ShimGangTest() {
    std::string pattern = testing::TempDir() + "/shim_gang_test.XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~ShimGangTest() override { std::filesystem::remove_all(folder_); }

  std::string MakeShim(const std::string& script) const {
    const std::string path = folder_ + "/shim";
    std::ofstream(path) << "#!/bin/sh\n" << script;
    ::chmod(path.c_str(), 0755);
    return path;
  }

  std::string folder_;
};

// Its status says 0, which as a target of kill is the agent and all of its process group.
TEST_F(ShimGangTest, ShimThatStopsBeforeItNotesItsNumberIsKilledAlone) {
  const std::string shim =
      MakeShim("truncate -s " + std::to_string(sizeof(ShimStatus)) +
               " \"$1/status\"; printf broken >&3; exec 3>&-; exec sleep 600\n");
  LaunchPlan plan;
  plan.scope = "shim-gang-test-" + std::to_string(::getpid());
  const auto gang = ShimGang::Launch(shim, folder_, plan);
  EXPECT_THAT(gang, StatusIs(absl::StatusCode::kInternal, "broken"));
}

}  // namespace
}  // namespace switchyard
