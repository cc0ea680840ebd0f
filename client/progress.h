// One line of progress, and its place at the bottom of a terminal.
#ifndef SWITCHYARD_CLIENT_PROGRESS_H_
#define SWITCHYARD_CLIENT_PROGRESS_H_

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/terminal.h"
#include "switchyard/v1/job.pb.h"

namespace switchyard {

// "step 12/100 loss 4.2131 lr 2.000e-03 grad_norm 1.2 tokens/s 12345 memory 1.2 GB left 1m03s":
// what a log log keeps. No bar, no width.
std::string PlainProgress(const v1::StepMetrics& step, absl::Duration left);

// Shorter, for a terminal `width` columns wide: a bar first, then what fits, the least important
// left out first. Never longer than width - 1, so that the cursor stays on the line.
std::string BarProgress(const v1::StepMetrics& step, absl::Duration left, int width);

// Time until the last step at the average pace of the steps seen since the attempt's first; zero
// when unknown. Keeps the pace over at most the last 50 steps.
class TimeLeft {
 public:
  absl::Duration After(const v1::StepMetrics& step);

 private:
  int attempt_ = 0;
  int64_t last_step_ = 0;
  double seconds_per_step_ = 0;
  int64_t seen_ = 0;
};

// Lines above, one live line at the bottom. Writes each change at once, so nothing flickers. When
// the terminal does not redraw there is no live line.
class LiveLine {
 public:
  explicit LiveLine(Terminal& terminal) : terminal_(terminal) {}
  ~LiveLine() { Close(); }
  // A line that stays.
  void Print(absl::string_view line);
  // Replaces the live line.
  void Update(const std::string& line);
  // Leaves the live line where it is and goes below it.
  void Close();

 private:
  Terminal& terminal_;
  std::string live_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_PROGRESS_H_
