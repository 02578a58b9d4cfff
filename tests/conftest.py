import inspect
import os
from functools import partial
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jsonargparse.typing
import pytest
import torch
import transformers

from hsdlab.decoding import shared_prompt
from hsdlab.testing import TINY_FAMILIES, RememberedDecodes, tiny_model
from tests import results

transformers.logging.set_verbosity_error()
# jsonargparse asks for the stack of each new parser, with the source of each frame; under pytest there are many.
jsonargparse.typing.inspect = SimpleNamespace(**(vars(inspect) | {"stack": partial(inspect.stack, context=0)}))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)  # tiny matrices only lose by more


@pytest.fixture(autouse=True, scope="session")
def _prompts_apart():
    """Hold prompts apart from new tokens also where they are short, as those of most tests are."""
    shared_prompt.FEWEST_TOKENS = 0


@pytest.fixture(scope="session")
def shared_models():
    """The tiny models that there are, by family and options."""
    return {}


@pytest.fixture(scope="session")
def tiny(shared_models):
    """Tiny models by family, made once."""

    def get(family="llama", **options):
        key = (family, *sorted(options.items()))
        if key not in shared_models:
            shared_models[key] = tiny_model(family, **options)
        return shared_models[key]

    return get


@pytest.fixture(autouse=True, scope="module")
def _shared_models_stay_as_they_are(shared_models):
    """A test that changes one of the tiny models, and so others' results, is found in its own file."""
    seen = {key: state_of(model) for key, model in shared_models.items()}
    yield
    for key, model in shared_models.items():
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
