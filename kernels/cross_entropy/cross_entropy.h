// Linear head and cross entropy in one: logits exist for one chunk of tokens at a time, in bf16,
// and are turned into their own gradient in place.
//   loss[t] = logsumexp(h[t] w^T) - (h[t] w^T)[label[t]]   (0 for an ignored token)
//   d_logits = scale * (softmax - onehot), dh = d_logits w, dw (+)= d_logits^T h
// Sums over the vocabulary and over tokens are fp32 in a fixed order.
//
// hidden, vocabulary % 8 == 0, vocabulary <= 327680; pointers are 16-byte aligned; labels below 0
// are ignored, others must be < vocabulary. Allocates nothing; asynchronous on `stream`, no host
// synchronization. Errors: cudaErrorInvalidValue for an unsupported shape, else the launch error.
#ifndef SWITCHYARD_KERNELS_CROSS_ENTROPY_CROSS_ENTROPY_H_
#define SWITCHYARD_KERNELS_CROSS_ENTROPY_CROSS_ENTROPY_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

// Loss and gradient of rows of logits, in place; one cluster of blocks keeps a row in its
// registers, so logits are read once and written once.
struct CrossEntropyParams {
  Bf16* logits;           // in out  [rows, vocabulary]; out: d_logits when `gradient`
  const int32_t* labels;  // in      [rows]
  const float* scale;     // in      one, on the device, e.g. 1 / targets; null: 1
  float* loss;            // out     [rows]; not scaled
  int64_t rows;
  int vocabulary;
  bool gradient;
};
cudaError_t CrossEntropy(const CrossEntropyParams& p, cudaStream_t stream);

template <class DwOut>
struct LinearCrossEntropyParams {
  const Bf16* h;          // in      [tokens, hidden]
  const Bf16* w;          // in      [vocabulary, hidden]
  const int32_t* labels;  // in      [tokens]
  const float* scale;     // in      one, on the device; null: 1
  float* loss;            // out     [tokens]
  Bf16* dh;               // out     [tokens, hidden]; null: loss alone
  DwOut* dw;              // in out  [vocabulary, hidden]; null: frozen head
  void* workspace;        // scratch LinearCrossEntropyWorkspaceBytes(chunk, hidden, vocabulary)
  int64_t tokens;
  int hidden, vocabulary;
  int chunk;        // tokens whose logits exist at a time, e.g. 1024; Bf16 dw rounds once per chunk
  bool accumulate;  // add into dw; else the first chunk overwrites it
};
// Parts of the vocabulary that dh is summed from.
constexpr int kHeadSplits = 2;
constexpr int64_t LinearCrossEntropyWorkspaceBytes(int64_t chunk, int64_t hidden,
                                                   int64_t vocabulary) {
  return chunk * (vocabulary * 2 + kHeadSplits * hidden * 4) + 256;
}
cudaError_t LinearCrossEntropy(const LinearCrossEntropyParams<float>& p, cudaStream_t stream);
cudaError_t LinearCrossEntropy(const LinearCrossEntropyParams<Bf16>& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_CROSS_ENTROPY_CROSS_ENTROPY_H_
