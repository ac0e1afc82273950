import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

# Same examples in every CI run; no deadline, which would make a test a timing.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("fast", deadline=None, derandomize=True, max_examples=10)
# For mutants: a failure is enough, its smallest example would cost more than finding it.
settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
)
# Small networks are faster with one; `make test-machines` asks what two change.
THREADS = int(os.environ.get("NATGRAD_TEST_THREADS", "1"))
if os.environ.get("NATGRAD_TEST_SUMS") == "reversed":
    from bench import reversed_sums  # not where mutmut copies the tests to

    reversed_sums.install()
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local")
settings.load_profile(PROFILE)

if PROFILE == "mutation":

    def pytest_collection_modifyitems(items):
        """The quick ones first, as mutmut has timed them: most mutants end there."""
        if (timed := Path("mutmut-stats.json")).exists():
            seconds = json.loads(timed.read_text())["duration_by_test"]
            items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


@pytest.fixture(autouse=True)
def _fixed_threads_and_no_trace_in_the_global_generator():
    """The count of threads is no test's choice; nothing of ours may use the global generator."""
    torch.set_num_threads(THREADS)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random state was advanced"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
