import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

from hsdlab.decoding import shared_prompt
from hsdlab.testing import TINY_FAMILIES, RememberedDecodes, tiny_model
from tests import results

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tiny matrices only lose by more


@pytest.fixture(autouse=True, scope="session")
def _prompts_apart():
    """Hold prompts apart from new tokens also where they are short, as those of most tests are."""
    shared_prompt.FEWEST_TOKENS = 0


@pytest.fixture(scope="session")
def tiny():
    """Tiny models by family, made once."""
    made = {}

    def get(family="llama", **options):
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = tiny_model(family, **options)
        return made[key]

    get.made = made
    return get


@pytest.fixture(autouse=True, scope="module")
def _shared_models_stay_as_they_are(tiny):
    """A test that changes one of the tiny models, and so others' results, is found in its own file."""
    seen = {key: state_of(model) for key, model in tiny.made.items()}
    yield
    for key, model in tiny.made.items():
        assert state_of(model) == seen.get(key, state_of(tiny_model(key[0], **dict(key[1:])))), key


def state_of(model):
    """Names, sizes and sums of the weights, and the options of decoding."""
    weights = {name: (weight.shape, weight.double().sum().item()) for name, weight in model.named_parameters()}
    return weights, model.generation_config.to_dict(), model.config.to_dict()


@pytest.fixture(scope="session", params=[pytest.param(f, marks=pytest.mark.xdist_group(f)) for f in TINY_FAMILIES])
def family_model(request, tiny):
    """A tiny model of each family. One worker runs all tests of a family, which share decodes."""
    return tiny(request.param)


@pytest.fixture(scope="session")
def decodes(family_model):
    """Decodes of one family, each made once."""
    return RememberedDecodes()


@pytest.fixture(scope="session")  # frozen records
def full_depth():
    return results.full_depth()


@pytest.fixture(scope="session")
def hsd():
    return results.hsd()


@pytest.fixture(scope="session")
def calm():
    return results.calm()


@pytest.fixture(scope="session")
def recorded():
    return results.recorded()
