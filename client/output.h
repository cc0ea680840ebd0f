// What commands print: tables for people, JSON and YAML for programs, and numbers as people read
// them.
#ifndef SWITCHYARD_CLIENT_OUTPUT_H_
#define SWITCHYARD_CLIENT_OUTPUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/json.h"
#include "google/protobuf/message.h"
#include "google/protobuf/timestamp.pb.h"

namespace switchyard {

enum class Format { kTable, kJson, kYaml };

// protobuf's JSON mapping with the proto's field names, enums by name, defaults printed, int64 as
// strings.
Json MessageToJson(const google::protobuf::Message& message);

// `value` as JSON (indented, with a newline at the end) or YAML.
std::string Print(const Json& value, Format format);

// Left-aligned columns with two spaces between; a column as wide as its widest cell, the last one
// free.
std::string Table(const std::vector<std::string>& header,
                  const std::vector<std::vector<std::string>>& rows);

std::string HumanBytes(int64_t bytes);               // 1.5 GB, powers of 1000
std::string HumanCount(double count);                // 12.3k
std::string HumanDuration(absl::Duration duration);  // 1h02m, 3m05s, 12s
// How long ago; a dash when it is not set.
std::string HumanAge(const google::protobuf::Timestamp& time, absl::Time now);
std::string HumanLoss(double loss);  // 4 digits behind the point

// The part of a resource name behind the last slash.
std::string ShortName(absl::string_view name);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_OUTPUT_H_
