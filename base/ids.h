// Distinct types for the identities that travel together, so that no two can be swapped.
#ifndef SWITCHYARD_BASE_IDS_H_
#define SWITCHYARD_BASE_IDS_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <utility>

namespace switchyard {

// A value of type T that only compares with its own kind.
template <typename Tag, typename T>
class StrongId {
 public:
  StrongId() = default;
  explicit StrongId(T value) : value_(std::move(value)) {}
  const T& value() const { return value_; }
  friend auto operator<=>(const StrongId&, const StrongId&) = default;
  friend bool operator==(const StrongId&, const StrongId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongId& id) {
    return H::combine(std::move(h), id.value_);
  }
  friend std::ostream& operator<<(std::ostream& os, const StrongId& id) { return os << id.value_; }

 private:
  T value_{};
};

using JobId = StrongId<struct JobIdTag, std::string>;              // "projects/p/jobs/j"
using NodeId = StrongId<struct NodeIdTag, std::string>;            // the agent's --node
using Incarnation = StrongId<struct IncarnationTag, std::string>;  // one life of one agent process

// An incarnation orders itself: 16 hex digits of CLOCK_BOOTTIME in nanoseconds at its begin, '-', a
// random rest. Whether `a` began before `b`, both of one boot of one machine; false when either is
// of another form.
inline bool BeganBefore(const Incarnation& a, const Incarnation& b) {
  constexpr size_t kDigits = 16;
  const std::string& x = a.value();
  const std::string& y = b.value();
  const auto has_time = [](const std::string& s) {
    return s.size() > kDigits && s.find_first_not_of("0123456789abcdef") == kDigits &&
           s[kDigits] == '-';
  };
  return has_time(x) && has_time(y) && x.compare(0, kDigits, y, 0, kDigits) < 0;
}

// One try at a job; `number` is the fencing token.
struct AttemptId {
  JobId job;
  int32_t number = 0;
  friend auto operator<=>(const AttemptId&, const AttemptId&) = default;
  friend bool operator==(const AttemptId&, const AttemptId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const AttemptId& id) {
    return H::combine(std::move(h), id.job, id.number);
  }
  friend std::ostream& operator<<(std::ostream& os, const AttemptId& id) {
    return os << id.job << "/attempts/" << id.number;
  }
};

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_IDS_H_
