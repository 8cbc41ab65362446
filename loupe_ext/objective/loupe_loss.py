"""LOUPE's objective for anyone's training loop: plain tensors in, a dictionary of losses out."""

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_device, check_features, check_scale
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
    ) -> dict[str, Tensor]:
        """The losses of a batch of B matched pairs.

        Args:
            images, texts: [B, d], embeddings of whole images and captions.
            regions: [B, M, d], embeddings of image parts in the same space: patches, windows of them, or boxes.
            phrases: [B, N, d], embeddings of the captions' noun phrases (or of their words).
            logit_scale: the model's own inverse temperature, for `images` and `texts`; None: this module's.
            region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.

        Embeddings may have any length and any floating dtype; half types are taken to float32.

        Returns:
            The terms that are on, unweighted, by name; "gate", without gradient, if `fsa` is on; and "loss", their
            weighted sum. All are scalars.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value.
        """
        self.objective.bound()  # the last step's result
        for name, value, dims in (("images", images, "Bd"), ("texts", texts, "Bd"), ("regions", regions, "BMd")):
            check_features(name, value, dims)
        check_features("phrases", phrases, "BNd")
        for name, value in (("texts", texts), ("regions", regions), ("phrases", phrases)):
            check_device(name, value, "images", images)
        if logit_scale is not None:
            logit_scale = check_scale(logit_scale, images.device, "logit_scale")
        images, texts, regions, phrases = (directions(at_least_float32(x)) for x in (images, texts, regions, phrases))
        if phrase_lengths is None:
            phrase_lengths = torch.full((len(phrases),), phrases.shape[1], device=phrases.device)
        return self.objective(
            ImageFeatures(images, regions[:, None], region_lengths),
            TextFeatures(texts, phrases, phrase_lengths, phrases, phrase_lengths),
            logit_scale=logit_scale,
        )
