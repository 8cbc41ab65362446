"""What is right: every op in plain PyTorch, as its formula. For tests and benchmarks; loupe_ext never imports it."""
