# SPDX-License-Identifier: BSD-3-Clause
"""The operators inside other libraries, each imported only when asked for."""
