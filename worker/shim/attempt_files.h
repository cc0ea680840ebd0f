// The files through which an agent and a shim speak to each other, in the attempt folder:
//
//   launch              agent   what to start (launch_plan.h); renamed by whoever fences it off
//   lock                shim    locked for as long as the shim lives: an attempt has at most one
//   status              shim    ShimStatus, mapped by both
//   control             shim    a SOCK_SEQPACKET socket, see below
//   rank-<r>.config.json agent  sent to the rank as its first frame
//   rank-<r>.frames     shim    the bytes that the rank wrote to its link, as they came
//   rank-<r>.stdout, .stderr    its output; bytes in a gap (below) were lost
//
// and, in the agent's state folder, `lease`: a LeaseFile, mapped by the agent and all its shims.
//
// Control messages, agent to shim: one byte, then
//   'S' i32 signal              to every live rank's process group
//   'F' i32 rank, JSON          a frame for the rank, without its length; at most kMaxControlBytes
//   'D'                         the deadline of the lease is an earlier one now
// Shim to agent: 'n' whenever the files or the status have news. The newest connection counts.
#ifndef SWITCHYARD_WORKER_SHIM_ATTEMPT_FILES_H_
#define SWITCHYARD_WORKER_SHIM_ATTEMPT_FILES_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace switchyard {

inline constexpr char kLaunchFile[] = "launch";
inline constexpr char kFencedFile[] = "launch.fenced";
inline constexpr char kLockFile[] = "lock";
inline constexpr char kStatusFile[] = "status";
inline constexpr char kControlSocket[] = "control";
inline constexpr char kScopeVariable[] = "SWITCHYARD_SCOPE";
inline constexpr size_t kMaxControlBytes = 64 << 10;
// The descriptor on which the shim says that all ranks are started (one zero byte), or why not.
inline constexpr int kReadyFd = 3;
// The rank's end of its link.
inline constexpr int kLinkFd = 3;
// Exit status of a shim that finds another one on its attempt.
inline constexpr int kExitAlreadyJoined = 75;

// "<folder>/rank-<r>.<suffix>"
std::string RankFile(const std::string& folder, int rank, const char* suffix);

// Bytes of an output stream that were dropped for want of disk space.
struct LogGapStatus {
  std::atomic<uint64_t> begin{0};
  std::atomic<uint64_t> end{0};
};

struct StreamStatus {
  static constexpr int kMaxGaps = 16;
  // Bytes before this are in the file, or in a gap.
  std::atomic<uint64_t> size{0};
  std::atomic<uint32_t> num_gaps{0};
  LogGapStatus gaps[kMaxGaps];
};

// How a rank is doing. `code` and `signal` are valid once `ended` is 1.
struct RankStatus {
  std::atomic<int32_t> pid{0};  // 0: never started
  std::atomic<uint32_t> ended{0};
  std::atomic<int32_t> code{0};
  std::atomic<int32_t> signal{0};
  // All its output and frames are in the files.
  std::atomic<uint32_t> closed{0};
  std::atomic<uint64_t> frames_size{0};
  StreamStatus out;
  StreamStatus err;
};

// A shim writes, an agent reads. Zeros at first. The file's blocks are taken from the disk when it
// is made, and exits are synced, so that no full disk and no crash loses an exit code.
struct ShimStatus {
  static constexpr uint32_t kVersion = 1;
  static constexpr int kMaxRanks = 64;
  std::atomic<uint32_t> version{0};  // 0: no rank was ever started
  std::atomic<int32_t> shim_pid{0};
  std::atomic<uint32_t> num_ranks{0};
  std::atomic<uint32_t> deadline_fired{0};  // it killed the ranks because the lease ran out
  std::atomic<uint32_t> disk_full{0};       // output or frames wait for space now
  std::atomic<uint32_t> finished{0};        // no process of the attempt is left
  RankStatus ranks[kMaxRanks];
};

struct LeaseFile {
  // Nanoseconds of CLOCK_BOOTTIME after which shims kill. 0: at once.
  std::atomic<int64_t> deadline{0};
};

// A file mapped into memory, shared with other processes. Zeros when new.
template <typename T>
class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile() { Reset(); }
  MappedFile(MappedFile&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  MappedFile& operator=(MappedFile&& other) noexcept {
    Reset();
    data_ = other.data_;
    other.data_ = nullptr;
    return *this;
  }
  // 0 or errno; ENOENT: it is not there, and `create` is false.
  int Open(const std::string& path, bool create);
  T* get() const { return static_cast<T*>(data_); }
  T* operator->() const { return get(); }
  // On the disk when it returns.
  void Sync() const;
  void Reset();

 private:
  void* data_ = nullptr;
};

namespace internal {
int MapFile(const std::string& path, size_t size, bool create, void** data);
void UnmapFile(void* data, size_t size);
void SyncMapping(void* data, size_t size);
}  // namespace internal

template <typename T>
int MappedFile<T>::Open(const std::string& path, bool create) {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  Reset();
  return internal::MapFile(path, sizeof(T), create, &data_);
}
template <typename T>
void MappedFile<T>::Sync() const {
  if (data_ != nullptr) internal::SyncMapping(data_, sizeof(T));
}
template <typename T>
void MappedFile<T>::Reset() {
  if (data_ != nullptr) internal::UnmapFile(data_, sizeof(T));
  data_ = nullptr;
}

// A socket listening at, or connected to, "<folder>/control": paths of any length. -1: errno says
// why.
int ListenControl(const std::string& folder);
int ConnectControl(const std::string& folder);

// Takes the lock of an attempt folder: a descriptor that holds it until closed. -1 with EAGAIN:
// another process holds it. Never inherited by a program.
int LockAttempt(const std::string& folder);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_SHIM_ATTEMPT_FILES_H_
