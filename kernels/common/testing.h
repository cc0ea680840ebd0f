// For kernel tests and benchmarks: device memory that frees itself, seeded data, comparisons.
#ifndef SWITCHYARD_KERNELS_COMMON_TESTING_H_
#define SWITCHYARD_KERNELS_COMMON_TESTING_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/dtype.h"

namespace switchyard::kernels {

// Ends the program when a CUDA call failed: no later result would mean anything.
inline void CudaOrDie(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(3);
}
inline bool HasDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// `size` elements on the current device, poisoned with 0xff bytes (NaN, -1): what a kernel leaves
// unwritten shows. Owns the memory; movable.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    if (size_ == 0) return;
    CudaOrDie(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "cudaMalloc");
    CudaOrDie(cudaMemset(data_, 0xff, bytes()), "cudaMemset");
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) { Upload(host); }
  DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
  }
  DeviceArray& operator=(DeviceArray&&) = delete;
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }
  void Upload(const std::vector<T>& host) {
    if (size_ == 0) return;
    CudaOrDie(cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice), "upload");
  }
  // Wait for the device, so a fault inside the kernel ends the program here.
  std::vector<T> Download() const { return Download(0, size_); }
  std::vector<T> Download(size_t first, size_t count) const {
    CudaOrDie(cudaDeviceSynchronize(), "kernel");
    std::vector<T> host(count);
    if (count != 0) {
      CudaOrDie(cudaMemcpy(host.data(), data_ + first, count * sizeof(T), cudaMemcpyDeviceToHost),
                "download");
    }
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// Poison as the device has it, for outputs of a reference that are only partly written.
template <class T>
std::vector<T> Poisoned(size_t size) {
  std::vector<T> values(size);
  if (size != 0) std::memset(values.data(), 0xff, size * sizeof(T));
  return values;
}

using Random = std::mt19937_64;

inline std::vector<float> NormalFloats(size_t size, float scale, Random& random) {
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<float> values(size);
  for (float& v : values) v = normal(random);
  return values;
}
inline std::vector<Bf16> NormalBf16(size_t size, float scale, Random& random) {
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<Bf16> values(size);
  for (Bf16& v : values) v = ToBf16(normal(random));
  return values;
}
// As NormalBf16, but a million values that repeat: quick to make, and products of repeated rows
// cost what others cost.
inline std::vector<Bf16> RepeatedBf16(size_t size, float scale, Random& random) {
  const std::vector<Bf16> some = NormalBf16(std::min<size_t>(size, 1000003), scale, random);
  std::vector<Bf16> all(size);
  for (size_t i = 0; i < size; i += some.size()) {
    std::copy_n(some.begin(), std::min(some.size(), size - i), all.begin() + i);
  }
  return all;
}
// Whole numbers in [-range, range]: sums of products of them are exact in fp32, so results must
// match bit for bit whatever the order.
inline std::vector<Bf16> IntegerBf16(size_t size, int range, Random& random) {
  std::uniform_int_distribution<int> uniform(-range, range);
  std::vector<Bf16> values(size);
  for (Bf16& v : values) v = ToBf16(static_cast<float>(uniform(random)));
  return values;
}

// Empty when |got - ref| <= atol + rtol * |ref| everywhere, else the first difference and the
// count. NaN equals only NaN (poison on both sides).
template <class T>
std::string Difference(const std::vector<T>& got, const std::vector<T>& ref, float atol,
                       float rtol) {
  if (got.size() != ref.size()) return "sizes differ";
  size_t bad = 0, first = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const float g = ToFloat(got[i]), r = ToFloat(ref[i]);
    const bool close =
        std::isnan(r) ? std::isnan(g) : std::fabs(g - r) <= atol + rtol * std::fabs(r);
    if (!close && bad++ == 0) first = i;
  }
  if (bad == 0) return "";
  return std::to_string(bad) + " of " + std::to_string(got.size()) + " differ, first at " +
         std::to_string(first) + ": got " + std::to_string(ToFloat(got[first])) + " want " +
         std::to_string(ToFloat(ref[first]));
}

// Empty when all bytes agree.
template <class T>
std::string BitDifference(const std::vector<T>& got, const std::vector<T>& ref) {
  if (got.size() != ref.size()) return "sizes differ";
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &ref[i], sizeof(T)) != 0)
      return "first bit difference at " + std::to_string(i);
  }
  return "";
}

}  // namespace switchyard::kernels

#endif  // SWITCHYARD_KERNELS_COMMON_TESTING_H_
