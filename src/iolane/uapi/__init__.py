"""Constants of kernels and specifications."""
