// Early return on errors, for functions that return absl::Status or absl::StatusOr.
#ifndef SWITCHYARD_BASE_STATUS_MACROS_H_
#define SWITCHYARD_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define SY_CONCAT_INNER_(a, b) a##b
#define SY_CONCAT_(a, b) SY_CONCAT_INNER_(a, b)

// RETURN_IF_ERROR(DoIt());
#define RETURN_IF_ERROR(expr)                                                  \
  do {                                                                         \
    if (absl::Status sy_status_ = (expr); !sy_status_.ok()) return sy_status_; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, MakeX());
#define ASSIGN_OR_RETURN(lhs, expr) ASSIGN_OR_RETURN_IMPL_(SY_CONCAT_(sy_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr)   \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)

#endif  // SWITCHYARD_BASE_STATUS_MACROS_H_
