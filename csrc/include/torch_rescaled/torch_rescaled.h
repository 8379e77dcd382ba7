// SPDX-License-Identifier: BSD-3-Clause
// The operators of torch_rescaled as typed C++ functions.
//
// They call the registered operators by name through torch's dispatcher, so that autograd, autocast and tracing see
// what they see from Python, and so that no symbol of libtorch_rescaled.so is needed: it has to be linked or loaded.
#pragma once

#include "attention.h"
#include "attention_loss.h"
#include "map_regression.h"
#include "regression.h"
