// The subcommands of switchyardd that work on the files of a coordinator instead of being one:
//   switchyardd backup  --state-dir DIR --to FILE            while it runs, or not
//   switchyardd check   --state-dir DIR                      the same
//   switchyardd restore --state-dir DIR --from FILE --artifact-root DIR
//   switchyardd recover --state-dir DIR --artifact-root DIR
#ifndef SWITCHYARD_SERVER_MAINTENANCE_H_
#define SWITCHYARD_SERVER_MAINTENANCE_H_

#include <string>
#include <vector>

namespace switchyard {

bool IsMaintenanceCommand(const std::string& word);

// Runs arguments[0] with the rest of them; prints what it did on stdout, errors on stderr. Returns
// the exit code: 0 done, 1 failed, 2 usage.
int RunMaintenance(const std::vector<std::string>& arguments);

// For --help.
std::string MaintenanceHelp();

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_MAINTENANCE_H_
