// SPDX-License-Identifier: BSD-3-Clause
// Runs an AOTInductor package that Python compiled. The operator library is loaded by path, for a program that is not
// linked with it. Usage: aot libtorch_rescaled.so MODEL.pt2 INPUTS.pt OUTPUTS.pt
//   MODEL.pt2    by torch._inductor.aoti_compile_and_package
//   INPUTS.pt    by torch.save: a tuple of tensors
//   OUTPUTS.pt   for torch.load: a tuple of tensors
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "files.h"

namespace {

void run(const char* library, const std::string& model, const std::string& inputs, const std::string& outputs) {
  // Registers the operators; never closed, since torch keeps them.
  if (dlopen(library, RTLD_NOW) == nullptr) throw std::runtime_error(dlerror());

  torch::inductor::AOTIModelPackageLoader loader(model);
  save_tensors(loader.run(load_tensors(inputs)), outputs);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: aot libtorch_rescaled.so MODEL.pt2 INPUTS.pt OUTPUTS.pt\n");
    return 2;
  }
  try {
    run(arguments[1], arguments[2], arguments[3], arguments[4]);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "aot: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "aot: %s\n", error.what());
    return 1;
  }
}
