// Plain loops for embedding.h, on host pointers; the workspace is not used.
#ifndef SWITCHYARD_KERNELS_EMBEDDING_EMBEDDING_REF_H_
#define SWITCHYARD_KERNELS_EMBEDDING_EMBEDDING_REF_H_

#include "kernels/embedding/embedding.h"

namespace switchyard::kernels {

void EmbeddingRef(const EmbeddingParams& p);
void EmbeddingGradRef(const EmbeddingGradParams<float>& p);
void EmbeddingGradRef(const EmbeddingGradParams<Bf16>& p);

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_EMBEDDING_EMBEDDING_REF_H_
