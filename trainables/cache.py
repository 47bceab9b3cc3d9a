"""Where artefacts and cached views lie, shared by all sweeps of a user."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """`$DISTUNE_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("DISTUNE_CACHE") or platformdirs.user_cache_dir("distune"))
