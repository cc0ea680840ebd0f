// Which checkpoints of a job are kept. Pure.
#ifndef SWITCHYARD_SERVER_RETENTION_H_
#define SWITCHYARD_SERVER_RETENTION_H_

#include <vector>

#include "server/records.h"

namespace switchyard {

// Of `committed`, all committed checkpoints of one job in any order, those that the rule lets go,
// by step. Kept are:
//   - the `keep_last` ones committed last, whatever their steps: what a retry from an earlier step
//     commits is the newest; 0: all of them;
//   - those whose step is a multiple of `keep_every`;
//   - the `keep_best` ones of the lowest validation loss, the later one where two are equal; one
//     without a finite loss is never among them;
//   - pinned ones and the final one.
// Whether one is in use now is for the caller to know.
std::vector<CheckpointRecord> ChooseRetired(const RetentionRule& rule,
                                            std::vector<CheckpointRecord> committed);

}  // namespace switchyard

#endif  // SWITCHYARD_SERVER_RETENTION_H_
