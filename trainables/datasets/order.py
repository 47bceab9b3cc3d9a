"""The rows of a data source in the order in which a user has them, so that a file may speak of them.

digits and make_classification: as scikit-learn gives them; CIFAR-10: the training batches, then the test batch; a
folder of images: train/, then test/, each by class and file name, without broken images; a table of one's own: as in
its file, rows that are left out of the data too.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainables.datasets import BadData, Dataset, Rows, shortened


class Order(NamedTuple):
    """fingerprints: (n,) of the rows as `Rows` has them; ids: (n,) their names, as text."""

    fingerprints: NDArray[np.int64]
    ids: list[str]


def in_order(spec: Mapping[str, Any], id_name: str | None = None) -> Order:
    """Every row of the data that a study's `data` section describes, those to test on too; raises BadData.

    id_name: of the column whose values are the ids, where a table of one's own has one.
    """
    from trainables.datasets import csv_table, generated, image_folder, images

    if spec["kind"] == "csv":
        return Order(*csv_table.numbered(spec, id_name))
    if spec["kind"] == "image_folder":
        listing = image_folder.listed(spec)
        splits = image_folder.decoded_once(spec, listing, None)
        whole = {split: np.flatnonzero(rows.y != image_folder.BROKEN) for split, rows in splits.items()}
        prints = [splits[split].taken(kept).fingerprints() for split, kept in whole.items()]
        return Order(np.concatenate(prints), [listing[split][i].name for split, kept in whole.items() for i in kept])
    if spec["kind"] == "make_classification":
        x, y = generated.table(spec, np.random.RandomState(spec["random_state"]), shuffle=True)
        rows = Rows(x, y)
    elif spec["kind"] == "digits":
        rows = images.digits()
    elif spec["kind"] == "cifar10":
        rest, test = images.cifar10(spec)
        rows = rest.joined(test)
    else:
        raise BadData(f"the rows of {spec['kind']} have no order that a file could speak of")
    return Order(rows.fingerprints(), [str(number) for number in range(len(rows))])


def with_named_validation(dataset: Dataset, spec: Mapping[str, Any]) -> Dataset:
    """The dataset with the rows that the file `validation_rows` names to validate on, and the others to train on."""
    path, order = Path(spec["validation_rows"]), in_order(spec)
    try:
        if path.suffix == ".npy":
            named = [str(number) for number in np.load(path, allow_pickle=False).tolist()]
        else:
            named = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadData(f"data.validation_rows: cannot read {path}: {error}") from None
    places = {name: i for i, name in enumerate(order.ids)}
    if unknown := [name for name in named if name not in places]:
        raise BadData(
            f"data.validation_rows: {path} names {len(unknown)} rows that the data have not ({shortened(unknown)}): "
            f"expected such as {shortened(order.ids, 2)}"
        )
    pool, chosen = dataset.train.joined(dataset.validation), order.fingerprints[[places[name] for name in named]]
    seen = pool.fingerprints()
    if not np.isin(chosen, seen).all() or not len(chosen):
        foreign = [name for name, mark in zip(named, np.isin(chosen, seen), strict=True) if not mark]
        raise BadData(
            f"data.validation_rows: {path} names {len(named)} rows, of which {len(foreign)} are not there to train or "
            f"validate on ({shortened(foreign) or 'none is named'}): test rows, those left out by train_limit, and "
            "copies of other rows cannot be validated on"
        )
    held = np.isin(seen, chosen)
    train, validation = pool.taken(np.flatnonzero(~held)), pool.taken(np.flatnonzero(held))
    for part, rows in (("train", train), ("validate", validation)):
        if len(np.unique(rows.y)) < dataset.classes:
            raise BadData(
                f"data.validation_rows: {path} leaves {len(rows)} rows of {len(np.unique(rows.y))} classes to {part} "
                f"on: each of the {dataset.classes} classes needs at least one"
            )
    return replace(dataset, train=train, validation=validation)
