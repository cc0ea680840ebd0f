// JSON with Status: nlohmann's ordered DOM, parsed and read without exceptions.
#ifndef SWITCHYARD_BASE_JSON_H_
#define SWITCHYARD_BASE_JSON_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace switchyard {

// Keeps the order of keys. Never call its throwing members (at, get on a wrong type) on input: code
// built with -fno-exceptions would abort. Use the functions below.
using Json = nlohmann::ordered_json;

// Accepts what Python's json.dumps writes, so also the bare words NaN, Infinity and -Infinity,
// which become null. `what` names the text in errors ("config.json"), with the byte of the fault.
// Errors: InvalidArgument.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view what);

// Reads and parses a whole file. Errors: NotFound, InvalidArgument, Unavailable for a failed read.
absl::StatusOr<Json> ReadJsonFile(const std::string& path);

// indent < 0: compact. Invalid UTF-8 becomes U+FFFD.
std::string DumpJson(const Json& value, int indent = -1);

// The member `key` of an object as a T. T: bool, int64_t, double, std::string,
// std::vector<int64_t>, std::vector<double>, std::vector<std::string>. An int64_t may also be a
// string of digits, as protobuf's JSON mapping writes it, or a float without fraction; a double may
// be an integer or the strings "NaN", "Infinity", "-Infinity". Errors: NotFound without the key or
// when it is null; InvalidArgument: another type; both name the key and what was found.
template <typename T>
absl::StatusOr<T> JsonGet(const Json& object, absl::string_view key);

// As JsonGet, with `fallback` for a missing or null member. A wrong type stays an error.
template <typename T>
absl::StatusOr<T> JsonGetOr(const Json& object, absl::string_view key, T fallback) {
  absl::StatusOr<T> value = JsonGet<T>(object, key);
  if (absl::IsNotFound(value.status())) return fallback;
  return value;
}

// The member as an object or array, or nullptr when missing or null.
const Json* JsonFind(const Json& object, absl::string_view key);

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_JSON_H_
