"""What every test stands on: a cache of its own, never the user's, one thread, and no W&B unless it asks for it."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("patient", deadline=None)  # the first call of a torch function is slow
hypothesis.settings.load_profile("patient")

LONGEST = (
    "cluster",
    "sweep",
    "faults",
    "extend",
    "wandb",
    "chaos",
    "image_sweep",
    "table_sweep",
    "outside_sweep",
    "export",
)


def pytest_collection_modifyitems(items):
    """Files of minutes begin first, so that no process of several is left alone with one of them."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTUNE_CACHE", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY"):
            patch.delenv(name, raising=False)
        yield folder
