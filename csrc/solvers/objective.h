// SPDX-License-Identifier: BSD-3-Clause
// A loss of an attention map as its solver sees it (gauss_newton.h). Unknowns, gradients and products are vectors of
// float64 on the CPU: they are small, the map is not.
#pragma once
#include <memory>
#include <vector>

#include "metric.h"

namespace torch_rescaled::solvers {

// What the loss is at a point. Losses, gradients and products are in units of e^log_scale.
class Place {
 public:
  Place() = default;
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  virtual ~Place() = default;

  virtual Tensor gradient() = 0;
  // To be called before products: of the Gauss-Newton matrix, or of the Hessian.
  virtual void curve(bool full) = 0;
  virtual Tensor product(const Tensor& v) = 0;
  // The curvature of each block of unknowns, roughly.
  virtual std::vector<KroneckerBlock> blocks() = 0;
  // The same at the price of a few gradients, where that is less.
  virtual std::vector<KroneckerBlock> rough_blocks() { return blocks(); }
  // The whole matrix of the products; only where Objective::has_matrix.
  virtual Tensor matrix() { return {}; }

  double loss = 0, log_scale = 0;
  double magnitude = 0;  // of the squares that the loss is the difference of
  double log_sum = 0;    // mean of the logarithms of the rows' |sum of u|
  double misfit = 0;     // mean of the squared sines between rows and their targets, where the objective knows it
  double spread = 1;     // largest ratio of a row's sum of |u| to |sum of u|
};

class Objective {
 public:
  Objective() = default;
  Objective(const Objective&) = delete;
  Objective& operator=(const Objective&) = delete;
  virtual ~Objective() = default;

  virtual int64_t size() const = 0;
  virtual std::unique_ptr<Place> at(const Tensor& unknowns) const = 0;
  // Root of the mean square of the logits' change along a direction, from `unknowns`.
  virtual double change(const Tensor& unknowns, const Tensor& direction) const = 0;
  virtual double logits(const Tensor& unknowns) const = 0;  // root of their mean square
  virtual bool has_hessian() const { return false; }        // products of the Hessian, not of Gauss-Newton alone
  virtual bool has_matrix() const { return false; }
  virtual double epsilon() const = 0;   // of the arithmetic
  virtual double elements() const = 0;  // of the residual
};

}  // namespace torch_rescaled::solvers
