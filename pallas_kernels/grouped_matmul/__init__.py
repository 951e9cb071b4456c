"""Grouped matmul: rows in groups, each group times a matrix of its own."""

from jscale.pallas_kernels.grouped_matmul.choice import grouped_matmul as grouped_matmul
