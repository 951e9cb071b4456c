"""Retention: attention without a softmax, whose scores fade with distance, as a recurrence."""

from jscale.pallas_kernels.retention.choice import retention as retention
