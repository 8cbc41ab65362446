"""Triton kernels, one file per op. Imported only when the backend is asked for, so that triton stays optional."""
