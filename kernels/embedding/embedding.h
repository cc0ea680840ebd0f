// Embedding lookup, and its gradient without atomics: token positions are sorted by id (stable
// radix sort), and one block adds the rows of one id in the order of their positions.
// Deterministic.
//
// hidden % 8 == 0, 0 <= ids < vocabulary; pointers are 16-byte aligned; tokens == 0 is valid.
// Allocates nothing; asynchronous on `stream`, no host synchronization. Errors:
// cudaErrorInvalidValue for an unsupported shape or a short workspace, else the launch error.
#ifndef SWITCHYARD_KERNELS_EMBEDDING_EMBEDDING_H_
#define SWITCHYARD_KERNELS_EMBEDDING_EMBEDDING_H_

#include "kernels/common/dtype.h"
#include "kernels/common/launch.h"

namespace switchyard::kernels {

struct EmbeddingParams {
  const Bf16* table;   // in   [vocabulary, hidden]
  const int32_t* ids;  // in   [tokens]
  Bf16* out;           // out  [tokens, hidden]
  int64_t tokens;
  int hidden;
};
cudaError_t Embedding(const EmbeddingParams& p, cudaStream_t stream);

// d_table[id, :] += sum over tokens t with that id, in order, of d_out[t, :], summed in fp32. Rows
// of ids that do not occur are not touched. padding_id gets no gradient (-1: none).
template <class Out>
struct EmbeddingGradParams {
  const Bf16* d_out;   // in      [tokens, hidden]
  const int32_t* ids;  // in      [tokens]
  Out* d_table;        // in out  [vocabulary, hidden], float or Bf16
  void* workspace;     // scratch EmbeddingGradWorkspaceBytes(tokens), 256-byte aligned
  int64_t workspace_bytes;
  int64_t tokens;
  int hidden, vocabulary, padding_id;
};
int64_t EmbeddingGradWorkspaceBytes(int64_t tokens);
cudaError_t EmbeddingGrad(const EmbeddingGradParams<float>& p, cudaStream_t stream);
cudaError_t EmbeddingGrad(const EmbeddingGradParams<Bf16>& p, cudaStream_t stream);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_EMBEDDING_EMBEDDING_H_
