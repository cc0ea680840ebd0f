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

}  // namespace switchyard

#endif  // SWITCHYARD_BASE_CRC32C_H_
