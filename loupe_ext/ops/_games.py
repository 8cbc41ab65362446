"""A batch of games as the ops that read one take it: scores of regions with phrases, lengths, index and game."""

from typing import Literal, get_args

from torch import Tensor

import loupe_ext._C as _C
from loupe_ext._checks import (
    check_choice,
    check_floating,
    check_lengths,
    check_like,
    check_probability,
    check_tensor,
)
from loupe_ext.ops._native import address, dense_lengths, dtype_name, resolve_backend

MAX_ENTRIES = 2**28  # of one problem's scores, padded; the CPU kernels' sort keys carry an entry's offset in 28 bits
GameName = Literal["max-mean", "maxsim"]
GAMES = get_args(GameName)


def batch_of(
    scores: Tensor,
    col_scores: Tensor | None,
    region_lengths: Tensor | None,
    phrase_lengths: Tensor | None,
    game: str,
    backend: str,
) -> tuple[Tensor | None, ...]:
    """A public function's tensors as a batch, once it is sure that they are tensors that the ops can dispatch on."""
    check_choice("game", game, GAMES)
    check_tensor("scores", scores)
    for name, value in (
        ("col_scores", col_scores),
        ("region_lengths", region_lengths),
        ("phrase_lengths", phrase_lengths),
    ):
        if value is not None:
            check_tensor(name, value)
    resolve_backend(backend, scores.device)
    tensors = (scores, col_scores, region_lengths, phrase_lengths)
    if scores.dim() != 2:
        return tensors
    for name, lengths in (("region_lengths", region_lengths), ("phrase_lengths", phrase_lengths)):
        if lengths is not None:
            check_lengths(name, lengths, scores.shape[:0], scores.device)
    return tuple(None if x is None else x.unsqueeze(0) for x in tensors)


def check_games(
    scores: Tensor, cols: Tensor | None, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, game: str
) -> None:
    if scores.dim() != 3:
        raise ValueError(f"scores: expected shape [B, M, N] or [M, N], got {tuple(scores.shape)}")
    check_floating("scores", scores)
    if cols is not None:
        if game == "maxsim":
            raise ValueError("col_scores: expected None for game 'maxsim', which reads scores alone, got a tensor")
        check_like("col_scores", cols, "scores", scores)
    if rows_of is not None:
        check_lengths("region_lengths", rows_of, scores.shape[:1], scores.device)
    if cols_of is not None:
        check_lengths("phrase_lengths", cols_of, scores.shape[:1], scores.device)
    M, N = scores.shape[1:]
    if M * (N + 8) >= MAX_ENTRIES:
        raise ValueError(f"scores: expected fewer than 2^28 entries per problem, got {M} x {N}")
    check_probability(p)
    check_choice("game", game, GAMES)


class Games:
    """Dense tensors for one call of the native kernels, kept alive, and their addresses."""

    def __init__(
        self,
        scores: Tensor,
        cols: Tensor | None,
        rows_of: Tensor | None,
        cols_of: Tensor | None,
        p: float | None,
        game: str,
    ) -> None:
        self.scores = scores.contiguous()
        self.cols = None if cols is None else cols.contiguous()
        self.rows_of, self.cols_of, self.p, self.game = dense_lengths(rows_of), dense_lengths(cols_of), p, game
        self.tensors = (self.scores, self.cols, self.rows_of, self.cols_of)

    def native(self) -> _C.PairwiseCall:
        s, c, m, n = map(address, self.tensors)
        B, M, N = self.scores.shape
        return _C.PairwiseCall(s, c, m, n, B, M, N, dtype_name(self.scores), self.p, self.game)
