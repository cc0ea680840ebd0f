// CRC-32C (Castagnoli), the checksum of manifests, frames and download chunks. Uses the SSE4.2
// instruction where the processor has it.
#ifndef SWITCHYARD_BASE_CRC32C_H_
#define SWITCHYARD_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace switchyard {

// The checksum of what `crc` covers followed by `data`; start with crc = 0.
uint32_t Crc32c(uint32_t crc, const void* data, size_t size);
inline uint32_t Crc32c(absl::string_view data) { return Crc32c(0, data.data(), data.size()); }

// The checksum of two runs of bytes, one after the other, from theirs: crc(A B) from crc(A), crc(B)
// and the length of B. So a file's checksum comes from pieces that different processes wrote.
uint32_t Crc32cConcat(uint32_t first, uint32_t second, uint64_t second_bytes);

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_CRC32C_H_
