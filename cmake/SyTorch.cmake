# LibTorch out of the PyPI wheel (or a user's own: -DSY_TORCH_DIR=<folder with include and lib>),
# as the imported target sy_torch. torch's own CMake package is not used: it insists on a CUDA
# toolkit where the wheel was built with one, and the CPU trainer needs none.
set(SY_TORCH_DIR "" CACHE PATH "folder of LibTorch; empty: the wheel that deploy/setup installed")
if(NOT SY_TORCH_DIR)
  file(GLOB _candidates ${SY_DEPS_DIR}/venv/lib/python3*/site-packages/torch)
  if(NOT _candidates)
    message(FATAL_ERROR "LibTorch: looked for ${SY_DEPS_DIR}/venv/lib/python3*/site-packages/torch, "
      "found nothing. Run deploy/setup, or give -DSY_TORCH_DIR=..., or -DSY_TRAINER=OFF.")
  endif()
  list(GET _candidates 0 _torch_dir)
else()
  set(_torch_dir ${SY_TORCH_DIR})
endif()
set(SY_TORCH_RESOLVED ${_torch_dir})

add_library(sy_torch INTERFACE)
target_include_directories(sy_torch SYSTEM INTERFACE
  ${_torch_dir}/include ${_torch_dir}/include/torch/csrc/api/include)
target_compile_definitions(sy_torch INTERFACE USE_C10D_GLOO USE_DISTRIBUTED)
set(_torch_libs ${_torch_dir}/lib/libtorch_cpu.so ${_torch_dir}/lib/libc10.so)
file(GLOB _nvidia_libs ${_torch_dir}/../nvidia/*/lib)
if(SY_CUDA)
  list(APPEND _torch_libs ${_torch_dir}/lib/libtorch_cuda.so ${_torch_dir}/lib/libc10_cuda.so)
  # The headers that ATen's CUDA headers include come with the wheel's own runtime.
  file(GLOB _nvidia_includes ${_torch_dir}/../nvidia/*/include)
  target_include_directories(sy_torch SYSTEM INTERFACE ${_nvidia_includes})
  target_compile_definitions(sy_torch INTERFACE SY_CUDA USE_C10D_NCCL)
endif()
target_link_libraries(sy_torch INTERFACE
  -Wl,--no-as-needed ${_torch_libs} -Wl,--as-needed Threads::Threads)
target_link_options(sy_torch INTERFACE -Wl,-rpath,${_torch_dir}/lib)
foreach(_dir IN LISTS _nvidia_libs)
  get_filename_component(_dir ${_dir} REALPATH)
  target_link_options(sy_torch INTERFACE -Wl,-rpath,${_dir} -Wl,-rpath-link,${_dir})
endforeach()

file(WRITE ${CMAKE_BINARY_DIR}/pch/torch.cc "")
add_library(sy_pch_torch STATIC ${CMAKE_BINARY_DIR}/pch/torch.cc)
target_link_libraries(sy_pch_torch PRIVATE sy_flags sy_torch)
target_precompile_headers(sy_pch_torch PRIVATE <map> <memory> <string> <vector> <ATen/ATen.h>)
