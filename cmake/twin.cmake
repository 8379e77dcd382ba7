# For tests: the operators over the CUDA kernels' own sources, compiled for the host. They stand at the CPU key, in place
# of the CPU kernels; of those only the name of the instruction set is here.
foreach(source IN LISTS CUDA_KERNELS)
  string(MAKE_C_IDENTIFIER ${source} name)
  set(copy ${CMAKE_CURRENT_BINARY_DIR}/twin/${name}.cpp)  # by the suffix nvcc's file is C++ here
  file(CONFIGURE OUTPUT ${copy} CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n")
  list(APPEND twin_kernels ${copy})
endforeach()
add_library(torch_rescaled_twin SHARED EXCLUDE_FROM_ALL ${OPERATORS} csrc/kernels/cpu/isa.cpp ${twin_kernels})
operators(torch_rescaled_twin)
operator_library(torch_rescaled_twin)
target_compile_definitions(torch_rescaled_twin PRIVATE RESCALED_TWIN)
target_compile_options(torch_rescaled_twin PRIVATE -O2 -Wno-unknown-pragmas)
