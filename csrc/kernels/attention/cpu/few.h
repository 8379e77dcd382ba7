// SPDX-License-Identifier: BSD-3-Clause
// Which problems the forward of few queries serves.
#pragma once

namespace rescaled {
namespace {

constexpr int kFewQueries = 4;

}  // namespace
}  // namespace rescaled
