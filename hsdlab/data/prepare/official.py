"""The official files of each data set: where they are, their SHA-256, and what reads them.

Where each hash is from:

- E2E: `devset.csv` and `testset_w_refs.csv` were hashed in a clone of the official repository at the commit below,
  `trainset.csv` in a copy of its release archive. huggingface/datasets recorded the same three hashes.
- CommonGen: hashed in a clone at the commit below.
- XSum: the list of splits was hashed in a clone of the official repository. huggingface/datasets recorded the hash of
  the archive (datasets/xsum/dataset_infos.json).
- CNN/DailyMail: two of the three lists were hashed in a clone. huggingface/datasets recorded the other hashes.
- TL;DR and HealthCareMagic: no published hash was found. The hash of the first download is noted.
"""

from dataclasses import dataclass

from hsdlab.data.prepare import read
from hsdlab.data.prepare.read import Reader

_E2E = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/ab0d967dd5729ce455ef14ba9ffafc456a335264"
_COMMON_GEN = "https://raw.githubusercontent.com/LHRYANG/CommonGen/c4b56a9aa8ae19c8521847165a7a59e18207e686/data"
_XSUM = "https://raw.githubusercontent.com/EdinburghNLP/XSum/7b95485c3e861d7caff76a8b4c6b3fd3bf7ee9b1/XSum-Dataset"
_CNN = "https://raw.githubusercontent.com/abisee/cnn-dailymail/b15ad0a2db0d407a84b8ca9b5731e1f1c4bd24b9/url_lists"
_CNN_STORIES = "https://huggingface.co/datasets/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data"
_TLDR = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/datasets/tldr_3_filtered"
_HEALTHCAREMAGIC = "https://huggingface.co/datasets/lavita/ChatDoctor-HealthCareMagic-100k/resolve/main/data"


@dataclass(frozen=True)
class OfficialFile:
    """One file.

    Attributes:
        address: Where it is fetched from; its last part is the file's name.
        sha256: 64 hex digits; None where none is known, and the first download's is noted.
        megabytes: Its size; None where it is not known.
    """

    address: str
    sha256: str | None
    megabytes: float | None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.address.rpartition("/")[2]


@dataclass(frozen=True)
class OfficialSet:
    """A data set.

    Attributes:
        folder: Name of the folder that is written, and how the ids of its examples begin.
        title: What it is, in a few words.
        licence: As its authors state it.
        files: The official files.
        read: Makes pairs of them.
        whole: Whether each file is read alone, so that a split can be written without the files of the others.
        note: What somebody who compares scores has to know.
    """

    folder: str
    title: str
    licence: str
    files: tuple[OfficialFile, ...]
    read: Reader
    whole: bool
    note: str


_E2E_FILES = (
    OfficialFile(f"{_E2E}/trainset.csv", "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6", 9.3),
    OfficialFile(f"{_E2E}/devset.csv", "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9", 1.2),
    OfficialFile(f"{_E2E}/testset_w_refs.csv", "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd", 1.3),
)
_COMMON_GEN_FILES = tuple(
    OfficialFile(f"{_COMMON_GEN}/{name}.txt", sha256, megabytes)
    for name, sha256, megabytes in (
        ("train_src", "8a7dd5cbf06c06dff985ca8f69d47f0eed12de482863c141d4bde6317eaad250", 1.4),
        ("train_trg", "4a9582745b70481ff4775c10167ca0a35887518106160eca26755d15a73a1b29", 3.9),
        ("valid_src", "507f847ebd3fb64404b8c9ed0722a092d2c0de7e1296c5c8d48d6dce99d5930f", 0.1),
        ("valid_trg", "42ac03c945fa4bf60d1485ba1d58f0753b2b8aa919998067c439d5d62ab960b9", 0.2),
        ("test_src", "5654cd17947d236ee372ee51ae263991b0c381e3fd5ef58df9ac2a50a8768127", 0.2),
        ("test_trg", "34c9f28c43741a72d1130380b68518103f7a8fc4f66df0db3228dcc01f52390f", 0.4),
    )
)

OFFICIAL_SETS = {
    "e2e_nlg": OfficialSet(
        folder="e2e_nlg",
        title="E2E NLG Challenge 1.0.0: facts on a restaurant -> a description",
        licence="CC BY-SA 4.0",
        files=_E2E_FILES,
        read=read.e2e,
        whole=True,
        note="Train and test are the whole official sets. Validation is 347 of the 547 sources of the official one, as "
        "in docs/results.md; e2e_nlg_full has them all.",
    ),
    "e2e_nlg_full": OfficialSet(
        folder="e2e_nlg_full",
        title="E2E NLG Challenge 1.0.0 with all 547 validation sources",
        licence="CC BY-SA 4.0",
        files=_E2E_FILES,
        read=read.e2e_full,
        whole=True,
        note="The official splits.",
    ),
    "common_gen": OfficialSet(
        folder="common_gen",
        title="CommonGen: a few words -> a sentence with them; the draw of docs/results.md",
        licence="MIT (INK-USC/CommonGen)",
        files=_COMMON_GEN_FILES,
        read=read.common_gen,
        whole=False,
        note="10,000 of the 32,470 training sets and 789 of the 989 validation sets that stand in one split only, "
        "drawn with the seed 1234; the whole test set. common_gen_full has them all.",
    ),
    "common_gen_full": OfficialSet(
        folder="common_gen_full",
        title="CommonGen: all of it",
        licence="MIT (INK-USC/CommonGen)",
        files=_COMMON_GEN_FILES,
        read=read.common_gen_full,
        whole=True,
        note="The official splits, from a copy that holds the references of the test set too.",
    ),
    "cnn_dailymail": OfficialSet(
        folder="cnn_dailymail_full",
        title="CNN/DailyMail 3.0.0: news article -> its highlights, a line each",
        licence="Apache-2.0 (Hugging Face's card)",
        files=(
            OfficialFile(
                f"{_CNN_STORIES}/cnn_stories.tgz",
                "e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200",
                158.6,
            ),
            OfficialFile(
                f"{_CNN_STORIES}/dailymail_stories.tgz",
                "ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e",
                375.9,
            ),
            OfficialFile(
                f"{_CNN}/all_train.txt", "a5cee49f3a6c862c26ce29308236d2a99625ab6c86a43be22d5206b2790d8029", 46.4
            ),
            OfficialFile(
                f"{_CNN}/all_val.txt", "81887e982b045083409c6ee838aede8ff4b97291605bcfb21bffc456a16991db", 2.4
            ),
            OfficialFile(
                f"{_CNN}/all_test.txt", "c4f5efb5ec2126430a5c156efbd13d0e9c4cb490169e552c38b4a51981a009bd", 2.1
            ),
        ),
        read=read.cnn_dailymail,
        whole=False,
        note="The official splits, in the order of the archives.",
    ),
    "xsum": OfficialSet(
        folder="xsum_full",
        title="XSum: BBC article -> a summary of one sentence",
        licence="MIT (EdinburghNLP/XSum); the articles are the BBC's",
        files=(
            OfficialFile(
                f"https://huggingface.co/datasets/EdinburghNLP/xsum/resolve/main/data/{read.XSUM_ARCHIVE}",
                "10b48aa187fc9c904b30f76ca97e2da0de8d3a1238acc26acadef93e2001af90",
                254.6,
            ),
            OfficialFile(
                f"{_XSUM}/{read.XSUM_SPLITS}", "9c0c5d8f048a90bd68b19a34e4c30577ed270d3247b2119fa06a04ef46292068", 2.7
            ),
        ),
        read=read.xsum,
        whole=False,
        note="The official splits, in the order of the archive.",
    ),
    "reddit_tldr": OfficialSet(
        folder="reddit_tldr",
        title="Reddit TL;DR, filtered (arXiv 2009.01325): a post -> its summary by the writer",
        licence="CC BY 4.0 (Syed et al. 2018, of the unfiltered set)",
        files=tuple(OfficialFile(f"{_TLDR}/{name}", None, None) for name in read.TLDR_FILES),
        read=read.reddit_tldr,
        whole=True,
        note="The official splits.",
    ),
    "healthcaremagic": OfficialSet(
        folder="healthcaremagic",
        title="HealthCareMagic-100k (arXiv 2303.14070): a patient's question -> a doctor's answer",
        licence="none stated; not medical advice",
        files=(OfficialFile(f"{_HEALTHCAREMAGIC}/{read.HEALTHCAREMAGIC_FILE}", None, None),),
        read=read.healthcaremagic,
        whole=False,
        note="It has one split, which is divided 8 : 1 : 1 by the text of the question.",
    ),
}
"""The sets by the names that the command takes."""

OTHER_NAMES = {
    "cnn_dailymail_full": "cnn_dailymail",
    "xsum_full": "xsum",
    "patient_doctor": "healthcaremagic",
    "reddit_tifu": "reddit_tldr",
}
"""Names of the folders, and of this project's own small stand-ins, for which the official set is written."""
