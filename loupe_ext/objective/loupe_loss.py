"""LOUPE's objective for anyone's training loop: plain tensors in, a dictionary of losses out."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_features, check_number, check_same, length_mask, unchecked
from loupe_ext._distributed import Group
from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.objective.objective import Objective


class LoupeLoss(nn.Module):
    """The weighted sum cmc L_CMC + region_phrase L_RP + late_interaction L_LI + gate fsa L_FSA.

    FSA's labels are the model's own (exact interactions of its alignments), so its term waits until the model tells
    things apart: `contrast_gate` of the contrastive terms that are on. A model that was trained before begins with an
    open gate. `loupe_ext.objective.Objective` has further terms and settings.

    ```
    criterion = LoupeLoss().to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *criterion.parameters()])
    losses = criterion(image_embeds, text_embeds, patch_embeds, phrase_embeds, phrase_lengths=lengths)
    losses["loss"].backward()
    ```

    Args:
        cmc, region_phrase, fsa, late_interaction: weights, 0 or more; 0 leaves a term out. Leave out `cmc` if the
            model has its own contrast of whole images and captions, such as SigLIP's.
        fsa_temperature: of the labels of `fsa_loss`. negatives: whether the phrases of other captions compete in it.
        logit_scale: where the inverse temperatures start. They are learned, as parameters of this module: that of
            regions and phrases up to `max_logit_scale`, and that of whole images and captions up to 100.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
    """

    def __init__(
        self,
        cmc: float = 1.0,
        region_phrase: float = 1.0,
        fsa: float = 1.0,
        late_interaction: float = 0.0,
        *,
        fsa_temperature: float = 0.2,
        negatives: bool = True,
        logit_scale: float = 10.0,
        max_logit_scale: float = 60.0,
    ) -> None:
        super().__init__()
        fsa_temperature = check_number("fsa_temperature", fsa_temperature, 0, above=True)
        max_logit_scale = check_number("max_logit_scale", max_logit_scale, 0, above=True)
        self.objective = Objective(
            cmc=cmc,
            region_phrase=region_phrase,
            late_interaction={"weight": late_interaction, "of": "phrases"},
            fsa={"weight": fsa, "temperature": fsa_temperature, "negatives": negatives},
            regions="patches",
            logit_scale=logit_scale,
            max_local_logit_scale=max_logit_scale,
        )

    def forward(
        self,
        images: Tensor,
        texts: Tensor,
        regions: Tensor,
        phrases: Tensor,
        *,
        logit_scale: Tensor | float | None = None,
        region_lengths: Tensor | None = None,
        phrase_lengths: Tensor | None = None,
        group: Group = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch of B matched pairs.

        Args:
            images, texts: [B, d], embeddings of whole images and captions.
            regions: [B, M, d], embeddings of image parts in the same space: patches, windows of them, or boxes.
            phrases: [B, N, d], embeddings of the captions' noun phrases (or of their words).
            logit_scale: the model's own inverse temperature, for `images` and `texts`; None: this module's.
            region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
            group: a torch.distributed.ProcessGroup, whose processes hold a part of the batch each, as in `cmc_loss`.

        Embeddings may have any length and any floating dtype; half types are taken to float32.

        Returns:
            The terms that are on, unweighted, by name; "gate", without gradient, if `fsa` is on; and "loss", their
            weighted sum. All are scalars.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value.
        """
        self.objective.bound()  # the last step's result
        check_features("images", images, "Bd")
        for name, value, dims in (("texts", texts, "Bd"), ("regions", regions, "BMd"), ("phrases", phrases, "BNd")):
            check_features(name, value, dims)
            check_same(name, value, "images", images, {"B": (0, 0), "d": (len(dims) - 1, 1)})
        images, texts, regions, phrases = (directions(at_least_float32(x)) for x in (images, texts, regions, phrases))
        for name, lengths, value in (
            ("region_lengths", region_lengths, regions),
            ("phrase_lengths", phrase_lengths, phrases),
        ):
            length_mask(name, lengths, value, 1)
        if phrase_lengths is None:
            phrase_lengths = torch.full((len(phrases),), phrases.shape[1], device=phrases.device)
        image = ImageFeatures(images, regions[:, None], region_lengths)
        text = TextFeatures(texts, phrases, phrase_lengths, phrases, phrase_lengths)
        with unchecked() if group is None else nullcontext():  # sizes of several processes are compared
            return self.objective(image, text, logit_scale=logit_scale, group=group)
