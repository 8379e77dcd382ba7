# What a program in C++ needs beside the library: headers and a CMake package, installed into the Python package.
include(CMakePackageConfigHelpers)
include(${CMAKE_CURRENT_LIST_DIR}/torch_release.cmake)

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS torch_rescaled/__init__.py)
file(STRINGS torch_rescaled/__init__.py version REGEX "^__version__ = ")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" version "${version}")
torch_rescaled_torch_release(${TORCH_ROOT} RESCALED_TORCH_RELEASE)

set(package ${CMAKE_CURRENT_BINARY_DIR}/cmake)
configure_file(cmake/TorchRescaledConfig.cmake.in ${package}/TorchRescaledConfig.cmake @ONLY)
write_basic_package_version_file(${package}/TorchRescaledConfigVersion.cmake
  VERSION ${version} COMPATIBILITY SameMinorVersion)
install(FILES ${package}/TorchRescaledConfig.cmake ${package}/TorchRescaledConfigVersion.cmake
  cmake/torch_release.cmake DESTINATION torch_rescaled/share/cmake/TorchRescaled)

# As a target, so that each header can be compiled on its own: all_verify_interface_header_sets.
file(GLOB headers CONFIGURE_DEPENDS csrc/include/torch_rescaled/*.h)
add_library(torch_rescaled_headers INTERFACE)
target_sources(torch_rescaled_headers INTERFACE FILE_SET HEADERS BASE_DIRS csrc/include FILES ${headers})
target_include_directories(torch_rescaled_headers SYSTEM INTERFACE
  ${TORCH_ROOT}/include ${TORCH_ROOT}/include/torch/csrc/api/include)
set_target_properties(torch_rescaled_headers PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
install(TARGETS torch_rescaled_headers FILE_SET HEADERS DESTINATION torch_rescaled/include)
