// Rows <-> records.
#ifndef SWITCHYARD_SERVER_STORE_ROWS_H_
#define SWITCHYARD_SERVER_STORE_ROWS_H_

#include <string>
#include <vector>

#include "server/records.h"
#include "server/snapshot.h"
#include "server/store/database.h"

namespace switchyard {

// Column lists for SELECT and what reads one row of them.
extern const char kJobColumns[];
JobRecord ReadJob(const Query& row);
extern const char kJobViewColumns[];
JobView ReadJobView(const Query& row);  // without parts
extern const char kAttemptColumns[];
AttemptRecord ReadAttempt(const Query& row);  // without nodes
extern const char kPlacementColumns[];
PlacementRecord ReadPlacement(const Query& row);
extern const char kCheckpointColumns[];
CheckpointRecord ReadCheckpoint(const Query& row);
extern const char kNodeColumns[];
NodeRecord ReadNode(const Query& row);

int64_t ToRow(absl::Time time);
absl::Time TimeFromRow(int64_t micros);
std::string ToRow(const std::map<std::string, std::string>& labels);
std::string ToRow(const FailureRecord& failure);
std::string ToRow(const std::vector<std::string>& texts);
std::string ToRow(const std::vector<int32_t>& devices);
std::string ToRow(const std::vector<DeviceRecord>& devices);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_STORE_ROWS_H_
