// Checksums of files that nobody has read or written as a whole: joined from those of runs of
// bytes, which different ranks know. Torch-free and pure.
#ifndef SWITCHYARD_WORKER_TRAINER_CHECKPOINT_FILE_RUNS_H_
#define SWITCHYARD_WORKER_TRAINER_CHECKPOINT_FILE_RUNS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace switchyard {

// Neighbouring bytes of a file.
struct FileRun {
  int file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint32_t crc32c = 0;
};

// Sorts by file and offset, and joins runs that touch.
std::vector<FileRun> JoinRuns(std::vector<FileRun> runs);

// Of the bytes from the beginning of a file up to where no run, or a second one, has the next byte.
struct FileSum {
  uint64_t bytes = 0;
  uint32_t crc32c = 0;
};
std::vector<FileSum> SumFiles(const std::vector<FileRun>& runs, size_t num_files);

// As numbers, to send them to other ranks, and back.
std::vector<int64_t> RunsToNumbers(const std::vector<FileRun>& runs);
std::vector<FileRun> RunsFromNumbers(const std::vector<int64_t>& numbers);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_TRAINER_CHECKPOINT_FILE_RUNS_H_
