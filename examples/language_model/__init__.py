# SPDX-License-Identifier: BSD-3-Clause
"""A small byte-level language model: corpus, model, training, curvature, report."""
