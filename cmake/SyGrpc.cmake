# gRPC and protobuf, and one precompiled header for what all their users include.
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

foreach(suffix IN ITEMS "" "_noexcept")
  file(WRITE ${CMAKE_BINARY_DIR}/pch/grpc${suffix}.cc "")
  add_library(sy_pch_grpc${suffix} STATIC ${CMAKE_BINARY_DIR}/pch/grpc${suffix}.cc)
  target_link_libraries(sy_pch_grpc${suffix} PRIVATE sy_flags gRPC::grpc++ protobuf::libprotobuf)
  target_precompile_headers(sy_pch_grpc${suffix} PRIVATE
    <map> <memory> <string> <vector> <functional> <optional> <chrono>
    <grpcpp/grpcpp.h> <google/protobuf/message.h>)
endforeach()
target_compile_options(sy_pch_grpc_noexcept PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>)
