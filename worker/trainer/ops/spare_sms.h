// SMs that products leave to the kernels of a transfer that runs beside them.
//
// A product's kernel takes every SM for its whole run. Started while another kernel holds some, its
// last CTAs begin only when the first have ended, and it takes up to twice its time; started with
// fewer CTAs it takes little more. So whoever has a transfer in flight says so:
//
//     const ops::SpareSms spare(dispatcher.sms_in_flight());
//     ... products ...
//
// Counts for the grouped products and weight gradients of this folder on CUDA, in the thread that
// made it, while it lives. 0: none. Where they nest the inner one counts.
#ifndef SWITCHYARD_WORKER_TRAINER_OPS_SPARE_SMS_H_
#define SWITCHYARD_WORKER_TRAINER_OPS_SPARE_SMS_H_

namespace switchyard::ops {

class SpareSms {
 public:
  explicit SpareSms(int count);
  ~SpareSms();
  SpareSms(const SpareSms&) = delete;
  SpareSms& operator=(const SpareSms&) = delete;

  static int Now();

 private:
  int outer_;
};

}  // namespace switchyard::ops

#endif  // SWITCHYARD_WORKER_TRAINER_OPS_SPARE_SMS_H_
