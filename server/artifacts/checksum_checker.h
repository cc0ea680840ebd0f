// Reads whole checkpoints on a thread of its own and compares checksums. Nobody waits for it: who
// wants to know asks again.
#ifndef SWITCHYARD_SERVER_ARTIFACTS_CHECKSUM_CHECKER_H_
#define SWITCHYARD_SERVER_ARTIFACTS_CHECKSUM_CHECKER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "base/monitor.h"
#include "base/thread.h"

namespace switchyard {

// What a manifest says of one file, and what the file system says: a file that has not changed
// since need not be read again.
struct FileSum {
  std::string path;
  std::string name;    // relative, for messages
  std::string crc32c;  // eight hexadecimal digits
  int64_t size = 0;
  int64_t modified_ns = 0;
  uint64_t inode = 0;
  friend bool operator==(const FileSum&, const FileSum&) = default;
};

// Reads all of them. InvalidArgument: the first that differs, with both sums. Other errors: it
// could not be read, and may be whole. Cancelled: `stop` said so.
absl::Status CompareChecksums(const std::vector<FileSum>& files,
                              const std::function<bool()>& stop = nullptr);

// Thread-safe.
class ChecksumChecker {
 public:
  // `on_verdict` is called on the thread after each one, without a lock.
  explicit ChecksumChecker(std::function<void()> on_verdict);

  // What CompareChecksums says of these files of this folder; none: not read yet, and on the list
  // from now on. A verdict is kept while the files stay as they are, up to kMaxVerdicts folders;
  // one that says that they could not be read is given once, and then they are read again.
  absl::optional<absl::Status> Ask(const std::string& folder, const std::vector<FileSum>& files)
      ABSL_LOCKS_EXCLUDED(mu_);

  static constexpr size_t kMaxVerdicts = 4096;

  // Ends the thread; what is asked from then on has no verdict. Idempotent.
  void Stop() { thread_.StopAndJoin(); }

 private:
  struct Entry {
    std::vector<FileSum> files;
    absl::optional<absl::Status> verdict;
  };
  void Loop(const StopToken& stop) ABSL_LOCKS_EXCLUDED(mu_);

  const std::function<void()> on_verdict_;
  Monitor mu_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);  // by folder
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mu_);         // folders to read
  std::deque<std::string> told_ ABSL_GUARDED_BY(mu_);          // with a verdict, oldest first
  Thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_ARTIFACTS_CHECKSUM_CHECKER_H_
