// Command-line flags of switchyard-prep's commands: --name value, --name=value, --switch; a flag
// that takes a list takes words up to the next flag.
#ifndef SWITCHYARD_WORKER_PREP_FLAGS_H_
#define SWITCHYARD_WORKER_PREP_FLAGS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// Borrows the variables it is told to fill; their values at that time are the defaults in Help().
class FlagSet {
 public:
  // `usage`: the command, "switchyard-prep run"; `about`: what it does, for --help.
  FlagSet(std::string usage, std::string about)
      : usage_(std::move(usage)), about_(std::move(about)) {}

  void Text(const char* name, std::string* value, const char* help, bool required = false);
  void List(const char* name, std::vector<std::string>* value, const char* help,
            bool required = false);
  void Switch(const char* name, bool* value, const char* help);
  // Accepts `smallest` and more.
  void Integer(const char* name, int64_t* value, int64_t smallest, const char* help);
  // `parse` sets the value or says what is wrong with it.
  void Parsed(const char* name, const std::string& shown_default, const char* help,
              std::function<absl::Status(const std::string&)> parse);

  // Errors: InvalidArgument: unknown flag (with the nearest known), missing or bad value, missing
  // required flag, stray word.
  absl::Status Parse(const std::vector<std::string>& arguments);
  std::string Help() const;

 private:
  enum class Arity { kNone, kOne, kMany };
  struct Flag {
    std::string name;
    Arity arity;
    bool required;
    std::string shown_default;
    std::string help;
    std::function<absl::Status(const std::string&)> set;
    bool seen = false;
  };
  Flag* Find(absl::string_view name);
  std::string Nearest(absl::string_view name) const;

  std::string usage_;
  std::string about_;
  std::vector<Flag> flags_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_FLAGS_H_
