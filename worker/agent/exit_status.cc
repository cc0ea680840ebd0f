#include "worker/agent/exit_status.h"

#include <string.h>

#include "absl/strings/str_cat.h"

namespace switchyard {

std::string ExitStatus::ToString() const {
  if (signal == 0) return absl::StrCat("exit code ", code);
  return absl::StrCat("signal ", signal, " (", ::strsignal(signal), ")");
}

}  // namespace switchyard
