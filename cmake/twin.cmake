# For tests: the CUDA kernels' own sources compiled for the host (csrc/kernels/cuda/twin.h).
set(TWIN_KERNELS "")
foreach(source IN LISTS CUDA_KERNELS)
  string(MAKE_C_IDENTIFIER ${source} name)
  set(copy ${CMAKE_CURRENT_BINARY_DIR}/twin/${name}.cpp)  # by the suffix nvcc's file is C++ here
  file(CONFIGURE OUTPUT ${copy} CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n")
  list(APPEND TWIN_KERNELS ${copy})
endforeach()
function(twin target)
  target_compile_definitions(${target} PRIVATE RESCALED_TWIN)
  # setjmp and longjmp change stacks here: the fortified longjmp takes that for an error.
  target_compile_options(${target} PRIVATE -O2 -U_FORTIFY_SOURCE ${RESCALED_SANITIZE_OPTIMIZATION})
endfunction()
