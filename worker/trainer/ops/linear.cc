#include "worker/trainer/ops/linear.h"

#include <ATen/ATen.h>

#include "worker/trainer/ops/dtype.h"
#ifdef SY_CUDA
#include "worker/trainer/ops/linear_cuda.h"
#endif

namespace switchyard::ops {
namespace {

void CheckGroups(const at::Tensor& x_RI, const at::Tensor& weight_GOI,
                 const std::vector<int64_t>& rows_per_group) {
  TORCH_CHECK(static_cast<int64_t>(rows_per_group.size()) == weight_GOI.size(0),
              "grouped linear: ", rows_per_group.size(), " groups of rows for ", weight_GOI.size(0),
              " weights");
  int64_t rows = 0;
  for (int64_t n : rows_per_group) rows += n;
  TORCH_CHECK(rows == x_RI.size(0), "grouped linear: groups sum to ", rows, " rows, there are ",
              x_RI.size(0));
}

// Calls f(group, first row, rows) for every group that has rows.
template <typename F>
void ForEachGroup(const std::vector<int64_t>& rows_per_group, F f) {
  int64_t begin = 0;
  for (size_t g = 0; g < rows_per_group.size(); ++g) {
    if (rows_per_group[g] > 0) f(static_cast<int64_t>(g), begin, rows_per_group[g]);
    begin += rows_per_group[g];
  }
}

}  // namespace

at::Tensor LinearForward(const at::Tensor& x_RI, const at::Tensor& weight_OI,
                         const at::Tensor& bias_O) {
  TORCH_CHECK(x_RI.dim() == 2 && x_RI.size(1) == weight_OI.size(1), "linear: x ", x_RI.sizes(),
              " does not fit weight ", weight_OI.sizes());
  return bias_O.defined() ? at::addmm(bias_O, x_RI, weight_OI.t()) : at::mm(x_RI, weight_OI.t());
}

at::Tensor LinearBackwardInput(const at::Tensor& dy_RO, const at::Tensor& weight_OI) {
  return at::mm(dy_RO, weight_OI);
}

void LinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI, at::Tensor dweight_OI,
                          bool accumulate) {
  TORCH_CHECK(dy_RO.size(0) == x_RI.size(0) && dweight_OI.size(0) == dy_RO.size(1) &&
                  dweight_OI.size(1) == x_RI.size(1),
              "linear: dy ", dy_RO.sizes(), " and x ", x_RI.sizes(), " do not fit dweight ",
              dweight_OI.sizes());
#ifdef SY_CUDA
  if (on_cuda::ServesLinearBackwardWeight(dy_RO, x_RI, dweight_OI)) {
    return on_cuda::LinearBackwardWeight(dy_RO, x_RI, dweight_OI, accumulate);
  }
#endif
  const at::ScalarType type = dweight_OI.scalar_type();
  if (c10::promoteTypes(dy_RO.scalar_type(), type) != type) {  // single precision into bf16
    const at::Tensor product_OI = at::mm(dy_RO.t(), x_RI.to(dy_RO.scalar_type()));
    accumulate ? dweight_OI.add_(product_OI) : dweight_OI.copy_(product_OI);
  } else if (accumulate) {
    if (dy_RO.size(0) > 0) dweight_OI.addmm_(dy_RO.to(type).t(), x_RI.to(type));
  } else {
    at::mm_out(dweight_OI, dy_RO.to(type).t(), x_RI.to(type));  // zeros when there are no rows
  }
}

void LinearBackwardBias(const at::Tensor& dy_RO, at::Tensor dbias_O, bool accumulate) {
  if (!dbias_O.defined()) return;
  const at::Tensor sum_O = dy_RO.sum(0, /*keepdim=*/false, AccumulateType(dy_RO));
  accumulate ? dbias_O.add_(sum_O) : dbias_O.copy_(sum_O);
}

at::Tensor GroupedLinearForward(const at::Tensor& x_RI, const at::Tensor& weight_GOI,
                                const std::vector<int64_t>& rows_per_group) {
  CheckGroups(x_RI, weight_GOI, rows_per_group);
  at::Tensor y_RO = at::empty({x_RI.size(0), weight_GOI.size(1)}, x_RI.options());
  ForEachGroup(rows_per_group, [&](int64_t g, int64_t begin, int64_t rows) {
    at::Tensor out = y_RO.narrow(0, begin, rows);
    at::mm_out(out, x_RI.narrow(0, begin, rows), weight_GOI[g].t());
  });
  return y_RO;
}

at::Tensor GroupedLinearBackwardInput(const at::Tensor& dy_RO, const at::Tensor& weight_GOI,
                                      const std::vector<int64_t>& rows_per_group) {
  CheckGroups(dy_RO, weight_GOI, rows_per_group);
  at::Tensor dx_RI = at::empty({dy_RO.size(0), weight_GOI.size(2)}, dy_RO.options());
  ForEachGroup(rows_per_group, [&](int64_t g, int64_t begin, int64_t rows) {
    at::Tensor out = dx_RI.narrow(0, begin, rows);
    at::mm_out(out, dy_RO.narrow(0, begin, rows), weight_GOI[g]);
  });
  return dx_RI;
}

void GroupedLinearBackwardWeight(const at::Tensor& dy_RO, const at::Tensor& x_RI,
                                 const std::vector<int64_t>& rows_per_group, at::Tensor dweight_GOI,
                                 bool accumulate) {
  CheckGroups(dy_RO, dweight_GOI, rows_per_group);
  int64_t begin = 0;
  for (size_t g = 0; g < rows_per_group.size(); ++g) {
    const int64_t rows = rows_per_group[g];
    LinearBackwardWeight(dy_RO.narrow(0, begin, rows), x_RI.narrow(0, begin, rows),
                         dweight_GOI[static_cast<int64_t>(g)], accumulate);
    begin += rows;
  }
}

}  // namespace switchyard::ops
