"""What `loupe explain` does: find the model's kind, explain, print a table."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loupe_ext._indices import Index
from loupe_ext.explain.dual_encoder import explain_dual_encoder
from loupe_ext.explain.encoders import MaskedEncoder
from loupe_ext.explain.explanations import DualEncoderExplanation, Explanation, LateInteractionExplanation
from loupe_ext.explain.late_interaction import explain_late_interaction
from loupe_ext.explain.plots import sides, top
from loupe_ext.extras import needs, require

CLIP = ("clip", "siglip", "siglip2")
LATE = ("MultiVectorEncoder", "ColBERT")  # the latter is what PyLate writes
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Request:
    """A model's name, and either a query with files or an image with captions."""

    model: str
    query: str | None = None
    files: Sequence[Path] = ()
    image: Path | None = None
    captions: Sequence[str] = ()
    index: Index | None = None  # None: Shapley for late interaction, Banzhaf for a dual encoder
    p: float = 0.5
    num_coalitions: int = 1024
    players: str = "words"  # of a caption
    superpixels: int | None = None  # None: patches
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"


def explain(request: Request) -> list[Explanation]:
    """Explanations of all files or captions, the best score first.

    Raises:
        ValueError: the request does not fit the model, or names no model; a file holds neither text nor a picture.
        OSError: a file or the model cannot be read. ImportError: the model's library is missing.
    """
    documents = request.query is not None or bool(request.files)
    if documents == (request.image is not None or bool(request.captions)):
        raise ValueError("expected either --query with FILEs, or --image with --caption, got both or neither")
    if documents and (request.query is None or not request.files):
        raise ValueError("expected --query with FILEs, got one without the other")
    if not documents and (request.image is None or not request.captions):
        raise ValueError("expected --image with --caption, got one without the other")
    kind = model_kind(request.model)
    if documents != (kind in ("late interaction", "sentences")):
        wanted = "--image with --caption" if documents else "--query with FILEs"
        raise ValueError(f"--model: expected {wanted} for a model of {kind}, got {request.model}")
    contents = {str(file): read_document(file) for file in request.files}
    found: list[Explanation] = []
    if kind == "late interaction":
        found += _late(request, contents)
    else:
        found += _dual(request, kind, contents)
    return sorted(found, key=lambda x: -x.score if x.score == x.score else math.inf)  # type: ignore[attr-defined]


def model_kind(name: str) -> str:
    """ "late interaction", "sentences" (an embedder of them), "images and captions" or "our own", from its files."""
    from loupe_ext.train.pretrained import FORMAT

    config = _read(name, "config.json")
    architectures = config.get("architectures")
    architectures = architectures if isinstance(architectures, list) else []
    sentences = _read(name, "config_sentence_transformers.json")
    kind = sentences.get("model_type")
    if config.get("format") == FORMAT:
        return "our own"
    if kind in LATE or any("ForRetrieval" in str(x) or x == "HF_ColBERT" for x in architectures):
        return "late interaction"
    if config.get("model_type") in CLIP:
        return "images and captions"
    if kind == "SentenceTransformer" or (kind is None and _read(name, "modules.json")):
        return "sentences"
    got = kind or config.get("model_type")
    said = f"one of {got}" if got else f"{name}, which has no config.json of one"
    raise ValueError(f"--model: expected CLIP, SigLIP, sentence-transformers, ColBERT, ColPali or ours, got {said}")


def _read(name: str, file: str) -> dict[str, Any]:
    """A JSON file of a model in a folder or on the Hugging Face hub; nothing where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
    else:
        with needs("huggingface_hub"):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
        try:
            path = Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            return {}
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise ValueError(f"--model: expected a folder or a name on the hub, got {name} ({error})") from error
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--model: expected JSON in {path}, got {error}") from error
    return found if isinstance(found, dict) else {"list": found}


def read_document(file: Path) -> Any:
    """A text, or a picture (PIL) by the file's suffix."""
    if file.suffix.lower() in PICTURES:
        from loupe_ext.explain.adapters._sides import as_image

        return as_image(file)
    try:
        return file.read_text(encoding="utf-8-sig")  # a mark of the byte order is no content
    except UnicodeDecodeError as error:
        raise ValueError(f"FILE: expected a text in UTF-8 or a picture, got {file} ({error})") from error


def _late(request: Request, contents: dict[str, Any]) -> list[LateInteractionExplanation]:
    from loupe_ext.explain.adapters.multi_vector import MultiVectorTokens

    with needs("sentence-transformers"):
        from sentence_transformers import MultiVectorEncoder
    with _loading(request):
        model = MultiVectorEncoder(request.model, device=request.device)
    tokens = MultiVectorTokens(model, request.batch_size)
    documents = tokens.documents(list(contents.values()), list(contents))
    assert request.query is not None
    return explain_late_interaction(
        tokens.query(request.query), documents, index=request.index or "shapley", p=request.p
    )


def _dual(request: Request, kind: str, contents: dict[str, Any]) -> list[DualEncoderExplanation]:
    encoders = _encoders(request, kind)
    options: dict[str, Any] = {
        "index": request.index or "banzhaf",
        "p": request.p,
        "num_coalitions": request.num_coalitions,
        "batch_size": request.batch_size,
        "seed": request.seed,
        "progress": sys.stderr.isatty(),
    }
    if kind == "sentences":
        wrong = [name for name, content in contents.items() if not isinstance(content, str)]
        if wrong:
            raise ValueError(f"FILE: expected texts for a model of sentences, got {wrong[0]}")
        query = encoders.text(request.query, request.players)
        texts = [encoders.text(content, request.players) for content in contents.values()]
        return explain_dual_encoder(query, texts, **options)
    split = {"players": "superpixels", "num_superpixels": request.superpixels} if request.superpixels else {}
    image: MaskedEncoder = encoders.image(request.image, **split)
    return explain_dual_encoder(image, [encoders.text(text, request.players) for text in request.captions], **options)


def _encoders(request: Request, kind: str) -> Any:
    if kind == "our own":
        from loupe_ext.explain.adapters.own import OwnEncoders
        from loupe_ext.train import from_pretrained

        with _loading(request):
            own = from_pretrained(request.model).model.to(request.device)
        return OwnEncoders(own)
    if kind == "sentences":
        from loupe_ext.explain.adapters.sentences import SentenceEncoders

        with needs("sentence-transformers"):
            from sentence_transformers import SentenceTransformer
        with _loading(request):
            model = SentenceTransformer(request.model, device=request.device)
        return SentenceEncoders(model)
    from loupe_ext.explain.adapters.clip import ClipEncoders

    with needs("transformers"):
        from transformers import AutoModel, AutoProcessor
    with _loading(request):
        model = AutoModel.from_pretrained(request.model).eval().to(request.device)
        processor = AutoProcessor.from_pretrained(request.model)
    return ClipEncoders(model, processor)


@contextlib.contextmanager
def _loading(request: Request) -> Iterator[None]:
    """Without bars in what is printed; a damaged model ends in whatever error its library happens on."""
    with needs("transformers"):
        from transformers.utils import logging
    logging.disable_progress_bar()
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error):
            raise
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"--model: expected a model that can be loaded, got {request.model} ({said})") from error


def show(explanations: Sequence[Explanation], k: int) -> None:
    """Print the scores, and of each the `k` largest pairs of content."""
    require("rich")
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> None:
        console.print(Text(title, style="bold"))
        grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for at, head in enumerate(heads):
            grid.add_column(head, justify="left" if at < names else "right", overflow="fold")
        for row in rows:
            grid.add_row(*map(Text, row))
        console.print(grid)

    scores = [x.score for x in explanations]  # type: ignore[attr-defined]
    unit = max((abs(x) for x in scores if math.isfinite(x)), default=1.0)
    rows = [[_title(x), rounded(x.score, 0.0, unit), _about(x, unit)] for x in explanations]  # type: ignore[attr-defined]
    table("Scores", ["", "score", ""], rows, 1)
    for x in explanations:
        found = sides(x)
        pairs = top(found, k)
        unit = max((abs(value) for _, _, value, _ in pairs), default=1.0)
        late = isinstance(x, LateInteractionExplanation)
        rows = [
            [
                _plain(found.one.names[i]),
                _plain(found.other.names[j]),
                rounded(value, error, unit),
                *([rounded(x.winners[i, j].item(), 0.0, 1.0)] if isinstance(x, LateInteractionExplanation) else []),
            ]
            for i, j, value, error in pairs
        ]
        heads = ["document" if late else "one side", "query" if late else "other", found.name]
        table(_title(x), [*heads, *(["winner takes all"] if late else [])], rows, 2)


def _title(x: Explanation) -> str:
    if isinstance(x, LateInteractionExplanation):
        return _plain(x.name or x.document.text or "document")[:60]
    assert isinstance(x, DualEncoderExplanation)
    return _plain(x.text.text or " ".join(x.text.names))[:60]


def _about(x: Explanation, unit: float) -> str:
    if isinstance(x, DualEncoderExplanation):
        return f"with nothing there {rounded(x.baseline, 0.0, unit)}"
    assert isinstance(x, LateInteractionExplanation)
    content = ~torch.tensor(x.document.special)[:, None] & ~torch.tensor(x.query.special)
    return f"of which content {rounded(x.credit[content].sum().item(), 0.0, unit)}"


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def rounded(value: float, error: float = 0.0, unit: float | None = None) -> str:
    """With as many digits as the standard error allows, or three of the unit (None: of the value itself)."""
    if not math.isfinite(value):
        return "not known"
    unit = abs(value if unit is None else unit)
    if not math.isfinite(error):
        return rounded(value, 0.0, unit) + " ± ?"
    if error > 0:
        digits = -math.floor(math.log10(error))
        digits = min(12, max(0, digits + (error * 10.0**digits < 2)))
        return f"{value:.{digits}f} ± {error:.{digits}f}"
    digits = min(12, max(0, 2 - math.floor(math.log10(unit)))) if unit else 0
    return f"{value:.{digits}f}"
