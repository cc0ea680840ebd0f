#include "worker/trainer/checkpoint/file_runs.h"

#include <algorithm>
#include <utility>

#include "base/crc32c.h"

namespace switchyard {

std::vector<FileRun> JoinRuns(std::vector<FileRun> runs) {
  std::sort(runs.begin(), runs.end(), [](const FileRun& a, const FileRun& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  std::vector<FileRun> joined;
  for (const FileRun& run : runs) {
    if (!joined.empty() && joined.back().file == run.file &&
        joined.back().offset + joined.back().bytes == run.offset) {
      joined.back().crc32c = Crc32cConcat(joined.back().crc32c, run.crc32c, run.bytes);
      joined.back().bytes += run.bytes;
    } else {
      joined.push_back(run);
    }
  }
  return joined;
}

std::vector<FileSum> SumFiles(const std::vector<FileRun>& runs, size_t num_files) {
  std::vector<FileSum> sums(num_files);
  const std::vector<FileRun> joined = JoinRuns(runs);
  for (size_t i = 0; i < joined.size(); ++i) {
    const FileRun& run = joined[i];
    if (run.offset != 0) continue;
    sums[run.file] = {run.bytes, run.crc32c};
    // A run that begins inside it holds some bytes a second time.
    const bool overlapped =
        i + 1 < joined.size() && joined[i + 1].file == run.file && joined[i + 1].offset < run.bytes;
    if (overlapped) sums[run.file] = {joined[i + 1].offset, 0};
  }
  return sums;
}

std::vector<int64_t> RunsToNumbers(const std::vector<FileRun>& runs) {
  std::vector<int64_t> numbers;
  for (const FileRun& run : runs) {
    numbers.insert(numbers.end(),
                   {run.file, static_cast<int64_t>(run.offset), static_cast<int64_t>(run.bytes),
                    static_cast<int64_t>(run.crc32c)});
  }
  return numbers;
}

std::vector<FileRun> RunsFromNumbers(const std::vector<int64_t>& numbers) {
  std::vector<FileRun> runs;
  for (size_t i = 0; i + 3 < numbers.size(); i += 4) {
    runs.push_back({static_cast<int>(numbers[i]), static_cast<uint64_t>(numbers[i + 1]),
                    static_cast<uint64_t>(numbers[i + 2]), static_cast<uint32_t>(numbers[i + 3])});
  }
  return runs;
}

}  // namespace switchyard
