"""Artifacts for NVIDIA GPUs: kernels as PTX and machine code, and the C code that runs them."""
