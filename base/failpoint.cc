#include "base/failpoint.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/edit_distance.h"
#include "base/fd.h"
#include "base/log.h"

namespace switchyard {
namespace {

constexpr char kVariable[] = "SWITCHYARD_FAILPOINTS";

// Constant-initialized, so it is there before any place is constructed.
Failpoint* first_failpoint = nullptr;

absl::Status Fault(absl::string_view entry, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(kVariable, ": '", entry, "': ", why));
}

int ErrnoByName(absl::string_view name) {
  if (name == "EIO") return EIO;
  if (name == "ENOSPC") return ENOSPC;
  if (name == "EMFILE") return EMFILE;
  if (name == "ENOMEM") return ENOMEM;
  return 0;
}

const char* KindText(FailpointKind kind) {
  switch (kind) {
    case FailpointKind::kEvent:
      return "crash stop delay";
    case FailpointKind::kFallible:
      return "crash stop delay error";
    case FailpointKind::kWrite:
      return "crash stop delay error partial";
  }
  return "";
}

}  // namespace

Failpoint::Failpoint(const char* name, FailpointKind kind)
    : name_(name), kind_(kind), next_(first_failpoint) {
  first_failpoint = this;
}

absl::Status Failpoint::Check() {
  const int error = Errno();
  return error == 0 ? absl::OkStatus() : ErrnoStatus("failpoint", name_, error);
}

int Failpoint::Act(bool* torn) {
  const int64_t hit = hits_.fetch_add(1) + 1;
  if (hit < first_hit_ || (only_once_ && hit > first_hit_)) return 0;
  switch (action_) {
    case Action::kCrash:
      CrashNow();
    case Action::kStop:
      ::kill(::getpid(), SIGSTOP);
      return 0;
    case Action::kDelay:
      absl::SleepFor(delay_);
      return 0;
    case Action::kError:
      return errno_;
    case Action::kPartial:
      if (torn != nullptr) *torn = true;
      return 0;
  }
  return 0;
}

absl::Status Failpoint::ParseOne(absl::string_view entry) {
  const std::vector<absl::string_view> halves = absl::StrSplit(entry, absl::MaxSplits('=', 1));
  if (halves.size() != 2) return Fault(entry, "expected name=action");
  Failpoint* point = first_failpoint;
  std::vector<std::string> names;
  while (point != nullptr && point->name_ != halves[0]) {
    names.push_back(point->name_);
    point = point->next_;
  }
  if (point == nullptr) {
    const std::string nearest = Nearest(halves[0], names);
    return Fault(entry, absl::StrCat("no failpoint has this name",
                                     nearest.empty() ? "" : "; did you mean ", nearest, "?"));
  }

  absl::string_view action = halves[1];
  int64_t first_hit = 1;
  bool only_once = false;
  if (const size_t at = action.find('@'); at != absl::string_view::npos) {
    absl::string_view count = action.substr(at + 1);
    only_once = !absl::ConsumeSuffix(&count, "+");
    if (!absl::SimpleAtoi(count, &first_hit) || first_hit < 1) {
      return Fault(entry, "after '@' comes the number of a hit, from 1, perhaps with a '+'");
    }
    action = action.substr(0, at);
  }
  absl::string_view argument;
  if (const size_t open = action.find('('); open != absl::string_view::npos) {
    argument = action.substr(open + 1);
    if (!absl::ConsumeSuffix(&argument, ")")) return Fault(entry, "')' is missing");
    action = action.substr(0, open);
  }
  const bool fallible = point->kind_ != FailpointKind::kEvent;
  if (action == "delay") {
    if (!absl::ParseDuration(argument, &point->delay_) || point->delay_ < absl::ZeroDuration()) {
      return Fault(entry, "delay needs a duration such as delay(200ms)");
    }
    point->action_ = Action::kDelay;
  } else if (action == "error" && fallible) {
    point->errno_ = argument.empty() ? EIO : ErrnoByName(argument);
    if (point->errno_ == 0) return Fault(entry, "error knows EIO, ENOSPC, EMFILE, ENOMEM");
    point->action_ = Action::kError;
  } else if (!argument.empty()) {
    return Fault(entry, absl::StrCat("'", action, "' takes no argument here"));
  } else if (action == "crash") {
    point->action_ = Action::kCrash;
  } else if (action == "stop") {
    point->action_ = Action::kStop;
  } else if (action == "partial" && point->kind_ == FailpointKind::kWrite) {
    point->action_ = Action::kPartial;
  } else {
    return Fault(entry, absl::StrCat("this place can do: ", KindText(point->kind_)));
  }
  point->first_hit_ = first_hit;
  point->only_once_ = only_once;
  point->hits_ = 0;
  point->armed_ = true;
  return absl::OkStatus();
}

absl::Status ArmFailpoints(absl::string_view text) {
  std::vector<std::string> faults;
  for (absl::string_view entry : absl::StrSplit(text, ';', absl::SkipWhitespace())) {
    const absl::Status parsed = Failpoint::ParseOne(absl::StripAsciiWhitespace(entry));
    if (!parsed.ok()) faults.push_back(std::string(parsed.message()));
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "\n"));
}

absl::Status ArmFailpointsFromEnvironment() {
  const char* text = ::getenv(kVariable);
  if (text == nullptr || *text == '\0') return absl::OkStatus();
  SY_LOG(WARNING) << "failpoints are on: this process fails on purpose " << kVariable << "="
                  << text;
  return ArmFailpoints(text);
}

std::vector<std::string> FailpointNames() {
  std::vector<std::string> names;
  for (const Failpoint* point = first_failpoint; point != nullptr; point = point->next_) {
    names.push_back(absl::StrCat(point->name_, " ", KindText(point->kind_)));
  }
  std::sort(names.begin(), names.end());
  return names;
}

void CrashNow() {
  ::kill(::getpid(), SIGKILL);
  ::_exit(137);  // not reached: SIGKILL cannot be blocked
}

}  // namespace switchyard
