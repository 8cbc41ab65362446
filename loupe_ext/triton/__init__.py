"""Triton kernels, one file an op. Imported only when the backend is asked for, so that triton stays optional."""
