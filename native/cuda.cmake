# The CUDA side: the operations as a static library, their tests and benchmarks. Included by CMakeLists.txt when
# SLUICE_CUDA is ON, and by cuda/CMakeLists.txt, which builds it alone. Needs nvcc 13.0 or later, no GPU.
#   CMAKE_CUDA_ARCHITECTURES   90a by default (H100, H200)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
enable_language(CUDA)
# -std=c++20 is given by hand: CMake 3.25 knows no C++20 flag for every nvcc that has it, so it must not insist on one.
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
find_package(CUDAToolkit 13.0 REQUIRED)
set(SLUICE_NATIVE_DIR "${CMAKE_CURRENT_LIST_DIR}")

file(GLOB SLUICE_CUDA_SOURCES CONFIGURE_DEPENDS
  "${SLUICE_NATIVE_DIR}/src/ops/cuda/*.cu" "${SLUICE_NATIVE_DIR}/src/ops/cuda/*.cc")
add_library(sluice_cuda_ops STATIC ${SLUICE_CUDA_SOURCES})
target_include_directories(sluice_cuda_ops PUBLIC "${SLUICE_NATIVE_DIR}/src")
target_link_libraries(sluice_cuda_ops PUBLIC CUDA::cudart_static)
target_compile_options(sluice_cuda_ops PUBLIC "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr>")
set_target_properties(sluice_cuda_ops PROPERTIES
  CXX_STANDARD 20 POSITION_INDEPENDENT_CODE ON CUDA_RUNTIME_LIBRARY Static)

# Cards before Hopper: nothing is linked, but what is not particular to the copy engine must go on compiling for them.
set(SLUICE_CUDA_OLDER attention_decode_bf16 sampling rope_kv_write rmsnorm)
list(TRANSFORM SLUICE_CUDA_OLDER REPLACE "(.+)" "${SLUICE_NATIVE_DIR}/src/ops/cuda/\\1.cu")
add_library(sluice_cuda_older OBJECT ${SLUICE_CUDA_OLDER})
target_include_directories(sluice_cuda_older PRIVATE "${SLUICE_NATIVE_DIR}/src")
target_compile_options(sluice_cuda_older PRIVATE -std=c++20 --expt-relaxed-constexpr)
set_target_properties(sluice_cuda_older PROPERTIES CUDA_ARCHITECTURES "80;89")

# The CPU's sampler, which the sampling kernel is compared with.
file(GLOB SLUICE_CUDA_REFERENCE CONFIGURE_DEPENDS "${SLUICE_NATIVE_DIR}/src/sample/*.cc")
add_library(sluice_cuda_reference STATIC ${SLUICE_CUDA_REFERENCE})
target_include_directories(sluice_cuda_reference PUBLIC "${SLUICE_NATIVE_DIR}/src" "${SLUICE_NATIVE_DIR}/include")
target_compile_options(sluice_cuda_reference PRIVATE -ffp-contract=off)
set_target_properties(sluice_cuda_reference PROPERTIES CXX_STANDARD 20)

# A program a file; they are plain executables that exit with 0 when all is well.
file(GLOB SLUICE_CUDA_PROGRAMS CONFIGURE_DEPENDS
  "${SLUICE_NATIVE_DIR}/tests/cuda/test_*.cu" "${SLUICE_NATIVE_DIR}/../bench/gpu/*.cu")
# Everything that needs nvcc, under one name.
add_custom_target(sluice_cuda DEPENDS sluice_cuda_ops)
add_dependencies(sluice_cuda sluice_cuda_older)
foreach(source ${SLUICE_CUDA_PROGRAMS})
  get_filename_component(name "${source}" NAME_WE)
  add_executable(${name} "${source}")
  target_include_directories(${name} PRIVATE "${SLUICE_NATIVE_DIR}/tests/cuda" "${SLUICE_NATIVE_DIR}/../bench/gpu")
  target_link_libraries(${name} PRIVATE sluice_cuda_ops sluice_cuda_reference)
  set_target_properties(${name} PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  add_dependencies(sluice_cuda ${name})
endforeach()
