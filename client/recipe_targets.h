// The closed table of `_target_` names. They are compared, never imported.
#ifndef SWITCHYARD_CLIENT_RECIPE_TARGETS_H_
#define SWITCHYARD_CLIENT_RECIPE_TARGETS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace switchyard {

struct RecipeTarget {
  const char* key;      // the row of the key table whose value it may be
  const char* package;  // first part of the dotted name
  const char* symbol;   // last part or parts: the canonical symbol
  const char* refused;  // nullptr: known; else why it is refused
  const char* what;     // what we do for it
};

const std::vector<RecipeTarget>& RecipeTargets();

// The target that `name` means at `key`: same package, same symbol, whatever modules lie between
// (they moved between AutoModel's versions). A bare symbol without dots fits too. nullptr: unknown;
// `suggestion` is then the nearest known symbol, or empty.
const RecipeTarget* FindTarget(absl::string_view key, absl::string_view name,
                               std::string& suggestion);

}  // namespace switchyard

#endif  // SWITCHYARD_CLIENT_RECIPE_TARGETS_H_
