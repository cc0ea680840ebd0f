#include "worker/trainer/ops/spare_sms.h"

namespace switchyard::ops {
namespace {

thread_local int spare_sms = 0;

}  // namespace

SpareSms::SpareSms(int count) : outer_(spare_sms) { spare_sms = count; }
SpareSms::~SpareSms() { spare_sms = outer_; }
int SpareSms::Now() { return spare_sms; }

}  // namespace switchyard::ops
