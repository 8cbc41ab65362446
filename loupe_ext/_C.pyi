# Addresses are integers (0: absent); dtype is torch's name of it; p None means the Shapley index.
has_cuda: bool

def cpu_targets() -> list[str]: ...
def cpu_target() -> str: ...
def set_cpu_target(target: str) -> None: ...

class PairwiseCall:
    def __init__(
        self,
        scores: int,
        col_scores: int,
        region_lengths: int,
        phrase_lengths: int,
        B: int,
        M: int,
        N: int,
        dtype: str,
        p: float | None,
        game: str,
    ) -> None: ...

def pairwise_cpu(call: PairwiseCall, out: int, threads: int) -> None: ...
def pairwise_backward_cpu(
    call: PairwiseCall, grad: int, grad_scores: int, grad_col_scores: int, threads: int
) -> None: ...
def pairwise_scratch_bytes_cuda(call: PairwiseCall) -> int: ...
def pairwise_cuda(call: PairwiseCall, out: int, scratch: int, stream: int) -> None: ...
def pairwise_backward_cuda(
    call: PairwiseCall, grad: int, grad_scores: int, grad_col_scores: int, scratch: int, stream: int
) -> None: ...
def sides_cpu(call: PairwiseCall, order: int, regions: int, phrases: int, threads: int) -> None: ...
def sides_backward_cpu(
    call: PairwiseCall,
    order: int,
    grad_regions: int,
    grad_phrases: int,
    grad_scores: int,
    grad_col_scores: int,
    threads: int,
) -> None: ...
def sides_scratch_bytes_cuda(call: PairwiseCall, order: int, backward: bool) -> int: ...
def sides_cuda(call: PairwiseCall, order: int, regions: int, phrases: int, scratch: int, stream: int) -> None: ...
def sides_backward_cuda(
    call: PairwiseCall,
    order: int,
    grad_regions: int,
    grad_phrases: int,
    grad_scores: int,
    grad_col_scores: int,
    scratch: int,
    stream: int,
) -> None: ...

class MomentsCall:
    def __init__(self, coalitions: int, offsets: int, C: int, S: int, G: int, n: int, dtype: str) -> None: ...

def check_offsets(offsets: int, G: int, S: int) -> None: ...
def moments_cpu(call: MomentsCall, values: int, out: int, threads: int) -> None: ...
def moments_backward_cpu(call: MomentsCall, grad: int, grad_values: int, threads: int) -> None: ...
def moments_scratch_bytes_cuda(call: MomentsCall) -> int: ...
def moments_cuda(call: MomentsCall, values: int, out: int, scratch: int, stream: int) -> None: ...
def moments_backward_cuda(call: MomentsCall, grad: int, grad_values: int, stream: int) -> None: ...

class SampleCall:
    def __init__(
        self,
        problems: int,
        samples: int,
        first_problem: int,
        first_sample: int,
        seed: int,
        players: int,
        antithetic: bool,
        stratified: bool,
        threshold: int,
    ) -> None: ...

def sample_coalitions_cpu(call: SampleCall, out: int, threads: int) -> None: ...
def sample_permutations_cpu(call: SampleCall, out: int, threads: int) -> None: ...
def sample_coalitions_cuda(call: SampleCall, out: int, stream: int) -> None: ...
def sample_permutations_cuda(call: SampleCall, out: int, stream: int) -> None: ...

class RegionCall:
    def __init__(
        self,
        values: int,
        gram: int,
        regions: int,
        orders: int,
        B: int,
        R: int,
        K: int,
        n: int,
        prefixes: bool,
        dtype: str,
    ) -> None: ...

def region_walks_cpu(call: RegionCall, out: int, threads: int) -> None: ...
def region_scratch_bytes_cuda(call: RegionCall) -> int: ...
def region_walks_cuda(call: RegionCall, out: int, scratch: int, stream: int) -> None: ...

class MaximaCall:
    def __init__(
        self,
        sorted: int,
        order: int,
        regions: int,
        slopes: int,
        lengths: int,
        B: int,
        R: int,
        N: int,
        n: int,
        dtype: str,
    ) -> None: ...

def region_maxima_cpu(call: MaximaCall, out: int, threads: int) -> None: ...
def region_maxima_cuda(call: MaximaCall, out: int, stream: int) -> None: ...
