// A counter-based random source that is part of this program, so that seeds mean the same for good.
#ifndef SWITCHYARD_WORKER_PREP_RANDOM_H_
#define SWITCHYARD_WORKER_PREP_RANDOM_H_

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace switchyard {

// SplitMix64's finalizer (Steele, Lea, Flood 2014).
inline uint64_t Mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The `index`-th draw of stream `key`.
inline uint64_t Draw64(uint64_t key, uint64_t index) {
  return Mix64(Mix64(key) + 0x9e3779b97f4a7c15u * (index + 1));
}

// A permutation of 0 .. n - 1 (Fisher-Yates). The bias of taking the high product is below n /
// 2^64.
inline std::vector<int64_t> Permutation(uint64_t key, int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = n - 1; i > 0; --i) {
    const auto product = static_cast<unsigned __int128>(Draw64(key, static_cast<uint64_t>(i))) *
                         static_cast<uint64_t>(i + 1);
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(product >> 64)]);
  }
  return order;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PREP_RANDOM_H_
