# CUDA 13 for sm_90a: a toolkit of the user's (nvcc on the PATH, or CMAKE_CUDA_COMPILER), else the
# compiler that deploy/setup --cuda installed from PyPI. Also CUTLASS's and cuDNN frontend's headers.
# Sets SY_CUTLASS_DIR and SY_CUDNN_FRONTEND_DIR unless they are given.
file(GLOB _site ${SY_DEPS_DIR}/venv/lib/python3*/site-packages)
list(APPEND _site "")
list(GET _site 0 _site)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(_nvcc nvcc HINTS ${_site}/nvidia/cu13/bin /usr/local/cuda/bin)
  if(NOT _nvcc)
    message(FATAL_ERROR "CUDA: looked for nvcc on the PATH, in ${_site}/nvidia/cu13/bin and "
      "/usr/local/cuda/bin, found nothing. Run deploy/setup --cuda, or configure with -DSY_CUDA=OFF.")
  endif()
  set(CMAKE_CUDA_COMPILER ${_nvcc} CACHE FILEPATH "CUDA compiler")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
if(CCACHE_PROGRAM AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
endif()
set(CMAKE_CUDA_FLAGS_RELEASE "-O3" CACHE STRING "" FORCE)
enable_language(CUDA)

set(SY_CUTLASS_DIR "${_site}/cutlass_library/source/include" CACHE PATH
    "folder that holds cutlass/ and cute/ (CUTLASS 4.2 headers)")
set(SY_CUDNN_FRONTEND_DIR "${_site}/include" CACHE PATH
    "folder that holds cudnn_frontend.h (1.32)")
foreach(_header IN ITEMS ${SY_CUTLASS_DIR}/cute/tensor.hpp ${SY_CUDNN_FRONTEND_DIR}/cudnn_frontend.h)
  if(NOT EXISTS ${_header})
    message(FATAL_ERROR "CUDA: ${_header} does not exist. Run deploy/setup --cuda, or give "
      "-DSY_CUTLASS_DIR=... and -DSY_CUDNN_FRONTEND_DIR=..., or configure with -DSY_CUDA=OFF.")
  endif()
endforeach()
# What the trainer's operations call besides ATen; LibTorch loads the same files.
set(SY_CUDA_LIBRARIES "")
foreach(_name IN ITEMS cudnn.so.9 cublas.so.13 nvrtc.so.13 cudart.so.13)
  string(REGEX REPLACE "[.].*" "" _short ${_name})
  string(TOUPPER "SY_${_short}_LIBRARY" _variable)
  find_library(${_variable} NAMES lib${_name} HINTS ${_site}/nvidia/cudnn/lib ${_site}/nvidia/cu13/lib)
  if(NOT ${_variable})
    message(FATAL_ERROR "CUDA: lib${_name} is in none of the usual places, nor in ${_site}/nvidia. Run "
      "deploy/setup --cuda, or give -D${_variable}=..., or configure with -DSY_CUDA=OFF.")
  endif()
  list(APPEND SY_CUDA_LIBRARIES ${${_variable}})
endforeach()
# Windows between processes (worker/trainer/parallel/nccl_window.cc): the library of LibTorch's own
# process groups.
find_library(SY_NCCL_LIBRARY NAMES libnccl.so.2 HINTS ${_site}/nvidia/nccl/lib)
if(NOT SY_NCCL_LIBRARY)
  message(FATAL_ERROR "CUDA: libnccl.so.2 is in none of the usual places, nor in ${_site}/nvidia/nccl. "
    "Run deploy/setup --cuda, or give -DSY_NCCL_LIBRARY=..., or configure with -DSY_CUDA=OFF.")
endif()
