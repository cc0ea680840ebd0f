#include "kernels/dispatch/dispatch_ref.h"

#include <algorithm>

namespace switchyard::kernels {

DispatchPlanRef PlanDispatchRef(const DispatchShape& shape, const std::vector<RankRouting>& ranks,
                                int64_t max_rows) {
  const int local = shape.experts / shape.ranks;
  DispatchPlanRef plan{};
  plan.shape = shape;
  plan.max_rows = max_rows;
  plan.offsets.resize(shape.ranks);
  plan.owner_of.resize(shape.ranks);
  plan.row_at.resize(shape.ranks);
  plan.records.resize(shape.ranks);
  // The rows of an owner, in their order: by expert, source, and the source's own order.
  std::vector<std::vector<int32_t>> first_row(shape.ranks);  // [source][expert] at its owner
  for (auto& rows : first_row) rows.resize(shape.experts);
  for (int owner = 0; owner < shape.ranks; ++owner) {
    int32_t row = 0;
    const auto clamped = [&] { return static_cast<int32_t>(std::min<int64_t>(row, max_rows)); };
    for (int expert = owner * local; expert < (owner + 1) * local; ++expert) {
      plan.offsets[owner].push_back(clamped());
      for (int source = 0; source < shape.ranks; ++source) {
        first_row[source][expert] = row;
        row += ranks[source].offsets[expert + 1] - ranks[source].offsets[expert];
      }
    }
    plan.offsets[owner].push_back(clamped());
    plan.needed_rows = std::max(plan.needed_rows, row);
  }
  for (int source = 0; source < shape.ranks; ++source) {
    const RankRouting& routing = ranks[source];
    plan.records[source].assign(shape.ranks, 0);
    for (int64_t token = 0; token < routing.tokens; ++token) {
      std::vector<bool> goes_to(shape.ranks);
      for (int k = 0; k < shape.top_k; ++k) {
        const int32_t row = routing.row_of[token * shape.top_k + k];
        int expert = 0;
        while (row >= routing.offsets[expert + 1]) ++expert;
        plan.owner_of[source].push_back(expert / local);
        plan.row_at[source].push_back(first_row[source][expert] + row - routing.offsets[expert]);
        goes_to[expert / local] = true;
      }
      for (int owner = 0; owner < shape.ranks; ++owner) {
        plan.records[source][owner] += owner != source && goes_to[owner];
      }
    }
  }
  return plan;
}

void DispatchRowsRef(const DispatchPlanRef& plan, const std::vector<const Bf16*>& x,
                     const std::vector<const float*>& weights, const std::vector<Bf16*>& rows,
                     const std::vector<float*>& row_weights) {
  const int64_t hidden = plan.shape.hidden;
  for (size_t source = 0; source < plan.row_at.size(); ++source) {
    for (size_t copy = 0; copy < plan.row_at[source].size(); ++copy) {
      const int64_t row = plan.row_at[source][copy];
      const int owner = plan.owner_of[source][copy];
      if (row >= plan.max_rows) continue;
      const int64_t token = static_cast<int64_t>(copy) / plan.shape.top_k;
      std::copy_n(x[source] + token * hidden, hidden, rows[owner] + row * hidden);
      if (!weights.empty()) row_weights[owner][row] = weights[source][copy];
    }
  }
}

void CombineRowsRef(const DispatchPlanRef& plan, const std::vector<const Bf16*>& rows,
                    const std::vector<const Bf16*>& residual, const std::vector<Bf16*>& out) {
  const int64_t hidden = plan.shape.hidden;
  const int top_k = plan.shape.top_k;
  std::vector<float> total(hidden), partial(hidden);
  for (size_t source = 0; source < plan.row_at.size(); ++source) {
    const int64_t tokens = static_cast<int64_t>(plan.row_at[source].size()) / top_k;
    for (int64_t token = 0; token < tokens; ++token) {
      std::fill(total.begin(), total.end(), 0.f);
      for (int owner = 0; owner < plan.shape.ranks; ++owner) {
        bool has_copies = false;
        std::fill(partial.begin(), partial.end(), 0.f);
        for (int k = 0; k < top_k; ++k) {
          const int64_t row = plan.row_at[source][token * top_k + k];
          if (plan.owner_of[source][token * top_k + k] != owner) continue;
          has_copies = true;
          if (row >= plan.max_rows) continue;
          for (int64_t i = 0; i < hidden; ++i) partial[i] += ToFloat(rows[owner][row * hidden + i]);
        }
        if (!has_copies) continue;
        for (int64_t i = 0; i < hidden; ++i) total[i] += RoundBf16(partial[i]);
      }
      for (int64_t i = 0; i < hidden; ++i) {
        const int64_t at = token * hidden + i;
        out[source][at] =
            ToBf16(residual.empty() ? total[i] : total[i] + ToFloat(residual[source][at]));
      }
    }
  }
}

void CombinePartialsRef(const DispatchPlanRef& plan, const std::vector<const float*>& row_partials,
                        int num_partials, const std::vector<float*>& copy_sums) {
  for (size_t source = 0; source < plan.row_at.size(); ++source) {
    for (size_t copy = 0; copy < plan.row_at[source].size(); ++copy) {
      const int64_t row = plan.row_at[source][copy];
      const int owner = plan.owner_of[source][copy];
      float sum = 0.f;
      for (int i = 0; i < num_partials && row < plan.max_rows; ++i) {
        sum += row_partials[owner][i * plan.max_rows + row];
      }
      copy_sums[source][copy] = sum;
    }
  }
}

}  // namespace switchyard::kernels
