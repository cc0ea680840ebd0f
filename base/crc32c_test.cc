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

TEST(Crc32cTest, ChecksumsOfPiecesGiveThatOfTheWhole) {
  std::string text;
  for (int i = 0; i < 70000; ++i) text.push_back(static_cast<char>(i * i >> 3));
  for (const size_t cut : {0, 1, 7, 4096, 69999, 70000}) {
    const absl::string_view whole = text;
    EXPECT_EQ(
        Crc32cConcat(Crc32c(whole.substr(0, cut)), Crc32c(whole.substr(cut)), text.size() - cut),
        Crc32c(text))
        << cut;
  }
  // As zlib's crc32_combine: a length of many bits.
  const std::string zeros(1 << 20, '\0');
  uint32_t crc = Crc32c(text), of_zeros = 0;
  for (int i = 0; i < 33; ++i) {
    crc = Crc32c(crc, zeros.data(), zeros.size());
    of_zeros = Crc32c(of_zeros, zeros.data(), zeros.size());
  }
  EXPECT_EQ(Crc32cConcat(Crc32c(text), of_zeros, 33 * zeros.size()), crc);
}

}  // namespace
}  // namespace switchyard
