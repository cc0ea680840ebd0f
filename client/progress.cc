#include "client/progress.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/output.h"

namespace switchyard {
namespace {

constexpr int kWidestBar = 30;
constexpr int kNarrowestBar = 8;
constexpr int kNarrowestWithBar = 50;
constexpr int kPaceSteps = 50;

std::string Steps(const v1::StepMetrics& step) {
  if (step.total_steps() <= 0) return absl::StrCat("step ", step.step());
  return absl::StrCat("step ", step.step(), "/", step.total_steps());
}

// In the order of importance. Short: a bar must fit beside them in 80 columns.
std::vector<std::string> Fields(const v1::StepMetrics& step, absl::Duration left) {
  std::vector<std::string> fields = {
      step.total_steps() > 0 ? absl::StrCat(step.step(), "/", step.total_steps()) : Steps(step),
      absl::StrCat("loss ", HumanLoss(step.loss()))};
  if (left > absl::ZeroDuration()) fields.push_back(absl::StrCat("ETA ", HumanDuration(left)));
  fields.push_back(absl::StrCat(HumanCount(step.tokens_per_second()), " tok/s"));
  if (step.memory_bytes() > 0) fields.push_back(HumanBytes(step.memory_bytes()));
  fields.push_back(absl::StrFormat("lr %.1e", step.learning_rate()));
  if (step.skipped()) fields.push_back("skipped: not finite");
  return fields;
}

}  // namespace

std::string PlainProgress(const v1::StepMetrics& step, absl::Duration left) {
  std::string out = absl::StrFormat("%s loss %s lr %.3e grad_norm %.4g tokens/s %.0f", Steps(step),
                                    HumanLoss(step.loss()), step.learning_rate(), step.grad_norm(),
                                    step.tokens_per_second());
  if (step.memory_bytes() > 0) absl::StrAppend(&out, " memory ", HumanBytes(step.memory_bytes()));
  if (left > absl::ZeroDuration()) absl::StrAppend(&out, " left ", HumanDuration(left));
  if (step.skipped()) absl::StrAppend(&out, " skipped: gradient not finite");
  return out;
}

std::string BarProgress(const v1::StepMetrics& step, absl::Duration left, int width) {
  const int room = std::max(width - 1, 0);
  // "[" bar "]  "; on a terminal this narrow there is none.
  const int reserved = width >= kNarrowestWithBar && step.total_steps() > 0 ? kNarrowestBar + 4 : 0;
  std::string text;
  for (const std::string& field : Fields(step, left)) {
    const std::string longer = text.empty() ? field : absl::StrCat(text, "  ", field);
    if (static_cast<int>(longer.size()) > room - reserved) break;
    text = longer;
  }
  if (reserved == 0) return text;
  const int bar = std::min(kWidestBar, room - static_cast<int>(text.size()) - 4);
  if (bar < kNarrowestBar) return text;
  const double share = std::clamp(
      static_cast<double>(step.step()) / static_cast<double>(step.total_steps()), 0.0, 1.0);
  const int full = static_cast<int>(share * bar);
  std::string drawn(static_cast<size_t>(full), '=');
  if (full < bar) drawn += '>';
  drawn.resize(static_cast<size_t>(bar), ' ');
  return absl::StrCat("[", drawn, "]  ", text);
}

absl::Duration TimeLeft::After(const v1::StepMetrics& step) {
  if (step.attempt() != attempt_ || step.step() <= last_step_) {
    seen_ = 0;
    attempt_ = step.attempt();
  }
  last_step_ = step.step();
  seen_ = std::min<int64_t>(seen_ + 1, kPaceSteps);
  seconds_per_step_ += (step.step_seconds() - seconds_per_step_) / static_cast<double>(seen_);
  const double seconds = seconds_per_step_ * static_cast<double>(step.total_steps() - step.step());
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > 1e9) return absl::ZeroDuration();
  return absl::Seconds(seconds);
}

void LiveLine::Print(absl::string_view line) {
  std::string text;
  if (!live_.empty()) text = "\r\x1b[K";
  absl::StrAppend(&text, line, "\n", live_);
  terminal_.out << text << std::flush;
}

void LiveLine::Update(const std::string& line) {
  if (!terminal_.redraws) return;
  live_ = line;
  // Overwrite first, clear the rest after: the line is never seen empty.
  terminal_.out << absl::StrCat("\r", live_, "\x1b[K") << std::flush;
}

void LiveLine::Close() {
  if (!live_.empty()) terminal_.out << "\n" << std::flush;
  live_.clear();
}

}  // namespace switchyard
