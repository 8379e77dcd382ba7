// SPDX-License-Identifier: BSD-3-Clause
// Tensors in files that torch.save and torch.load of Python share.
#pragma once

#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// A tuple of tensors.
inline std::vector<at::Tensor> load_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const c10::IValue loaded = torch::jit::pickle_load({std::istreambuf_iterator<char>(file), {}});
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& element : loaded.toTupleRef().elements()) tensors.push_back(element.toTensor());
  return tensors;
}

// As a tuple: lists of tensors torch.load reads from trusted files only.
inline void save_tensors(const std::vector<at::Tensor>& tensors, const std::string& path) {
  std::vector<c10::IValue> elements(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(elements)));
  if (!std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error("cannot write " + path);
}
