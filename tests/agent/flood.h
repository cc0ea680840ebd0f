// The bytes of a log flood, the same on both sides.
#ifndef SWITCHYARD_TESTS_AGENT_FLOOD_H_
#define SWITCHYARD_TESTS_AGENT_FLOOD_H_

#include <cstddef>
#include <cstdint>

namespace switchyard {

// All byte values, no short period.
inline char FloodByte(size_t i) {
  return static_cast<char>((static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15ull) >> 56);
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_AGENT_FLOOD_H_
