"""Triton kernels, one file each; imported only by nmoe/ops.py."""
