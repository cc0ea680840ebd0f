#include "worker/agent/host_stats.h"

#include <unistd.h>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/agent/device_inventory.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(HostStatsTest, ReadsTheMachine) {
  const HostMemory memory = ReadHostMemory();
  EXPECT_GT(memory.available_bytes, 0);
  EXPECT_GT(memory.total_bytes, memory.available_bytes);
  EXPECT_GT(ReadProcessUsage(::getpid()).resident_bytes, 1 << 20);
  EXPECT_EQ(ReadProcessUsage(0).resident_bytes, 0);
  EXPECT_EQ(ReadBootId().size(), 36u);
}

TEST(HostStatsTest, FindsOomKills) {
  EXPECT_EQ(ParseOomKills("pgfault 3\noom_kill 17\nnuma_hit 4\n"), 17);
  EXPECT_EQ(ParseOomKills("pgfault 3\noom_kill_other 17\n"), -1);
}

TEST(HostStatsTest, FindsFreePorts) {
  absl::StatusOr<int> port = FindFreePort("127.0.0.1");
  ASSERT_THAT(port, IsOk());
  EXPECT_GT(*port, 0);
  EXPECT_THAT(FindFreePort("not an address"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DeviceInventoryTest, CpuSlotsShareTheMemory) {
  const std::vector<DeviceInfo> devices = CpuDevices(3);
  ASSERT_EQ(devices.size(), 3u);
  EXPECT_EQ(devices[2].index, 2);
  EXPECT_TRUE(devices[2].is_cpu());
  EXPECT_LE(3 * devices[0].memory_bytes, ReadHostMemory().total_bytes);
}

TEST(DeviceInventoryTest, MissingDriverSaysWhatToDo) {
  EXPECT_THAT(
      FindGpus("libswitchyard-no-such-driver.so"),
      StatusIs(absl::StatusCode::kNotFound,
               AllOf(HasSubstr("libswitchyard-no-such-driver.so"), HasSubstr("--cpu-ranks N"))));
}

}  // namespace
}  // namespace switchyard
