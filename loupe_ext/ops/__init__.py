"""One file an op: its public function, its checks, its registration with PyTorch."""

from loupe_ext.ops.pairwise import pairwise_interactions

__all__ = ["pairwise_interactions"]
