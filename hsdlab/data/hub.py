"""The data sets of the papers, from the Hugging Face hub."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from lightning.pytorch.utilities import rank_zero_warn

from hsdlab.data.base import SPLITS, Example, GenerationDataModule
from hsdlab.errors import UserError
from hsdlab.extras import of_extra

SPLIT_SEED = 0


def _words(concepts: list[str]) -> str:
    return " ".join(concepts)


def _without_cue(prompt: str) -> str:
    """Return the post; the cue that ends it is part of our template, where cutting a long post leaves it."""
    return prompt.strip().removesuffix("TL;DR:")


@dataclass(frozen=True)
class HubSet:
    """Where a data set is on the hub and how its rows become examples.

    Attributes:
        id: Repository of the data set.
        config: Configuration within the repository; None for its only one.
        revision: Commit or branch. `refs/convert/parquet` is the hub's own conversion of sets whose main branch
            holds a loading script, which `datasets` no longer runs.
        source: Column of what the model reads.
        reference: Column of what people wrote for it.
        group: Column that is equal in all rows of one source; None where each row is an example.
        splits: The hub's names of our train, validation and test split. A set with a single split is divided by
            `split_of`.
        licence: As stated on the card.
        prompt: Template of the prompt; ours.
        max_new_tokens: Longest output, as HSD's tables imply (docs/reconstruction.md); the configs repeat it.
        read: Makes the source text from the value in the column `source`.
    """

    id: str
    config: str | None
    revision: str
    source: str
    reference: str
    group: str | None
    splits: tuple[str, str, str]
    licence: str
    prompt: str
    max_new_tokens: int
    read: Callable[[Any], str] = str

    @property
    def is_undivided(self) -> bool:
        """Whether the hub has all examples in one split."""
        return len(set(self.splits)) == 1


HUB_SETS = {
    "cnn_dailymail": HubSet(
        id="abisee/cnn_dailymail",
        config="3.0.0",
        revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d",
        source="article",
        reference="highlights",
        group=None,
        splits=SPLITS,
        licence="Apache-2.0",
        prompt="{source}\n\nHighlights:",
        max_new_tokens=150,
    ),
    "xsum": HubSet(
        id="EdinburghNLP/xsum",
        config=None,
        revision="refs/convert/parquet",
        source="document",
        reference="summary",
        group=None,
        splits=SPLITS,
        licence="unknown",
        prompt="{source}\n\nSummary in one sentence:",
        max_new_tokens=150,
    ),
    "e2e_nlg": HubSet(
        id="tuetschek/e2e_nlg",
        config=None,
        revision="refs/convert/parquet",
        source="meaning_representation",
        reference="human_reference",
        group="meaning_representation",
        splits=SPLITS,
        licence="CC BY-SA 4.0",
        prompt="{source}\n\nDescription:",
        max_new_tokens=50,
    ),
    "common_gen": HubSet(
        id="allenai/common_gen",
        config=None,
        revision="4ef68a2650bf5983b0f03fc039332515959f59c4",
        source="concepts",
        reference="target",
        group="concept_set_idx",
        splits=("train", "validation", "validation"),  # the references of its test split are not public
        licence="MIT",
        prompt="{source}\n\nSentence with these words:",
        max_new_tokens=30,
        read=_words,
    ),
    "healthcaremagic": HubSet(
        id="lavita/ChatDoctor-HealthCareMagic-100k",
        config=None,
        revision="main",
        source="input",
        reference="output",
        group=None,
        splits=("train", "train", "train"),
        licence="none stated",
        prompt="Patient: {source}\n\nDoctor:",
        max_new_tokens=150,
    ),
    # Not in HSD's paper. Of the two copies on the hub the one whose validation split is not called "valid".
    "reddit_tldr": HubSet(
        id="trl-lib/tldr",
        config=None,
        revision="21233da376667088e6eb1ce4ce19ed832c2935d3",
        source="prompt",
        reference="completion",
        group=None,
        splits=SPLITS,
        licence="none stated",
        prompt="{source}\n\nTL;DR:",
        max_new_tokens=50,  # our choice: its summaries have at most 48 tokens (arXiv 2009.01325)
        read=_without_cue,
    ),
}
"""The sets by their names here."""


class HubDataset(GenerationDataModule):
    """A data set of the papers from the Hugging Face hub: one of `HUB_SETS`.

    All references of a source are in one example, in the order of the rows; rows without text are left out, and
    counted. An example's id is the name, the hub's split and the number of its first row there. No code of a
    repository is run. Where the hub cannot be reached, the newest copy in the local cache is used.

    Two sets have no test split of their own. CommonGen's test references are not public: `test` reads its
    validation split, and says so; settings must not be chosen on that split, then. HealthCareMagic has one split,
    divided 8 : 1 : 1 by the text of the question (`split_of`); it is not the division of HSD's paper.

    Args:
        name: Of the set: cnn_dailymail, xsum, e2e_nlg, common_gen, healthcaremagic or reddit_tldr.
        prompt: Template of the prompt; `{source}` stands for the source text. By default that of the set.
        **kwargs: See `GenerationDataModule`.

    Raises:
        UserError: Unknown name, or as `GenerationDataModule`.
    """

    def __init__(self, name: str, prompt: str | None = None, **kwargs: Any) -> None:
        if name not in HUB_SETS:
            raise UserError(f"name={name!r}: expected one of {', '.join(HUB_SETS)}")
        self.hub_set = HUB_SETS[name]
        super().__init__(prompt=self.hub_set.prompt if prompt is None else prompt, **kwargs)
        self.name = name

    def prepare_data(self) -> None:
        """Download all splits unless they are in the local cache; Lightning calls it in one process a machine.

        Raises:
            ConnectionError: The hub cannot be reached and the local cache does not hold the set.
        """
        self._load(split=None)

    def load_examples(self, split: str) -> list[Example]:
        """Return the examples of `split`, in the order of their first rows.

        Raises:
            ConnectionError: The hub cannot be reached and the local cache does not hold the set.
            UserError: A column is missing.
        """
        hub_split = self.hub_set.splits[SPLITS.index(split)]
        if hub_split != split and not self.hub_set.is_undivided:
            rank_zero_warn(
                f"{self.name}: the references of the {split} split are not public, its {hub_split} split is used "
                f"instead; figures on it cannot be compared with published {split} figures",
                category=UserWarning,
            )
        rows = self._load(hub_split)
        columns = {self.hub_set.source, self.hub_set.reference, self.hub_set.group or self.hub_set.source}
        missing = sorted(columns - set(rows.column_names))
        if missing:
            raise UserError(
                f"{self.hub_set.id} has no column {', '.join(missing)}; got {', '.join(rows.column_names)}: "
                f"the hub's copy has changed since revision {self.hub_set.revision} was looked at"
            )
        examples = to_examples(rows.select_columns(sorted(columns)), self.hub_set, f"{self.name}-{hub_split}")
        used = sum(len(example.references) for example in examples)
        if used < len(rows):
            rank_zero_warn(
                f"{self.name}: {len(rows) - used} of {len(rows)} {hub_split} rows have no source or no reference "
                "and are left out",
                category=UserWarning,
            )
        if self.hub_set.is_undivided:
            return [example for example in examples if split_of(example.source) == split]
        return examples

    def _load(self, split: str | None) -> Any:
        """Return the hub's `split` as a `datasets.Dataset`, or all of them by name."""
        with of_extra("data", "HubDataset"):
            from datasets import config, load_dataset  # slow to import

        hub_set = self.hub_set
        reachable = _hub_answers(hub_set)
        with _offline(config, not reachable):
            try:
                return load_dataset(hub_set.id, hub_set.config, revision=hub_set.revision, split=split)
            except (OSError, ValueError) as error:  # ValueError: another configuration is in the cache
                if reachable:
                    raise
                raise ConnectionError(
                    f"{self.name}: the hub cannot be reached (no network, or HF_HUB_OFFLINE is set) and "
                    f"{hub_set.id} is not in the local cache, {config.HF_CACHE_HOME}. On a machine with network run\n"
                    f'  python -c "from hsdlab.data import HubDataset; HubDataset({self.name!r}).prepare_data()"\n'
                    "and copy its cache folder (~/.cache/huggingface, or $HF_HOME) here; or give a copy of your "
                    "own, in JSON Lines files: --data=JSONLines --data.folder=path/to/folder"
                ) from error


def to_examples(rows: Iterable[Mapping[str, Any]], hub_set: HubSet, prefix: str) -> list[Example]:
    """Make examples of rows with the hub's columns.

    Args:
        rows: The rows; those without a source or a reference are left out.
        hub_set: Names the columns.
        prefix: How the ids begin; the number of the first row follows.

    Returns:
        One example a source, with all its references, in the order of their first rows.
    """
    sources: dict[Any, tuple[int, str]] = {}  # group -> its first row and source
    references: dict[Any, list[str]] = {}
    for number, row in enumerate(rows):
        source = hub_set.read(row[hub_set.source] or "").strip()
        reference = (row[hub_set.reference] or "").strip()
        if not source or not reference:
            continue
        group = number if hub_set.group is None else row[hub_set.group]
        sources.setdefault(group, (number, source))
        references.setdefault(group, []).append(reference)
    return [
        Example(f"{prefix}-{number:06}", source, tuple(references[group]))
        for group, (number, source) in sources.items()
    ]


def split_of(source: str) -> str:
    """Choose the split of a source text in a set that the hub does not divide.

    It depends on nothing but the text and `SPLIT_SEED`, so that no text is in two splits.

    Args:
        source: The text.

    Returns:
        "test" and "validation" for one tenth of all texts each, else "train".
    """
    tenth = int(hashlib.sha256(f"{SPLIT_SEED} {source}".encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def _hub_answers(hub_set: HubSet) -> bool:
    """Ask the hub for the set once, where `datasets` would retry for 23 seconds."""
    try:
        get_hf_file_metadata(hf_hub_url(hub_set.id, "README.md", repo_type="dataset", revision=hub_set.revision))
    except HfHubHTTPError:
        return True  # it answers: what is wrong, load_dataset tells best
    except Exception:  # no network or HF_HUB_OFFLINE=1; the type depends on the hub's HTTP client
        return False
    return True


@contextmanager
def _offline(config: Any, offline: bool) -> Iterator[None]:
    """Have `datasets` look into its cache only; it reads the environment no later than at its import."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
