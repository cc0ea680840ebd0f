#include "base/crc32c.h"

#include <string>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(Crc32cTest, KnownValues) {  // RFC 3720, B.4
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(Crc32cTest, PiecesGiveTheWhole) {
  const std::string text = "a checkpoint is written in pieces";
  uint32_t crc = 0;
  for (char c : text) crc = Crc32c(crc, &c, 1);
  EXPECT_EQ(crc, Crc32c(text));
}

}  // namespace
}  // namespace switchyard
