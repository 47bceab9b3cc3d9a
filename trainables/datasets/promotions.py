"""Promotional campaigns as a generated table: fitted on rows without a promotion, tested on rows with one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.model_selection import train_test_split

from trainables.datasets import Column, Dataset, Rows

Floats = NDArray[np.float64]

CHANNELS = ("Email", "Store", "App", "Social")
COLUMNS = (
    Column("Age"),
    Column("Income"),
    Column("Days"),
    Column("Loyalty"),
    Column("Basket"),
    Column("Visits"),
    Column("Holiday"),
    Column("Channel", CHANNELS),
    Column("Promo"),
)
MISSING = {"Income": 0.04, "Loyalty": 0.02}  # the share of rows without a value
HOLIDAYS = 0.3  # the share of holidays without a promotion, and of impulse purchases at every setting of the dial


def load(spec: Mapping[str, Any]) -> Dataset:
    """`rows` without a promotion, split into train and validation with equal shares of buyers; `test_rows` with one.

    The test rows depend on `random_state`, `test_rows` and `specialisation` alone.
    """
    x, y = draw(spec["rows"], False, spec["specialisation"], np.random.default_rng([spec["random_state"], 0]))
    test_x, test_y = draw(
        spec["test_rows"], True, spec["specialisation"], np.random.default_rng([spec["random_state"], 1])
    )
    table = Rows(x, y, _fingerprints(x, first=0))
    train, validation = train_test_split(
        np.arange(len(table)), test_size=spec["validation_fraction"], random_state=spec["split_seed"], stratify=y
    )
    return Dataset(
        classes=2,
        train=table.taken(train),
        validation=table.taken(validation),
        test=Rows(test_x, test_y, _fingerprints(test_x, first=len(table))),
        population=None,
        columns=COLUMNS,
        segments=("Holiday", "Channel"),
    )


def draw(
    rows: int, promo: bool, specialisation: float, random: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """x: (rows, columns) as `COLUMNS` says, NaN where a value is missing; y: (rows,) 1 where the customer bought.

    promo: whether these rows are of a promotion. specialisation: the dial, 0 to 1.
    """
    x = customers(rows, promo, random)
    y = (random.random(rows) < chance(x, specialisation)).astype(np.int64)
    for name, share in MISSING.items():
        x[random.random(rows) < share, _index(name)] = np.nan
    return x, y


def customers(rows: int, promo: bool, random: np.random.Generator) -> Floats:
    """(rows, columns) customers with nothing missing, as the table at the top says, before any of them buys."""
    x = np.empty((rows, len(COLUMNS)))
    x[:, _index("Age")] = np.clip(np.rint(random.normal(40 if promo else 44, 15, rows)), 18, 90)
    x[:, _index("Income")] = np.rint(random.lognormal(np.log(30_000 if promo else 33_000), 0.5, rows))
    x[:, _index("Days")] = np.floor(random.exponential(55 if promo else 40, rows))
    x[:, _index("Loyalty")] = random.beta(2, 3 if promo else 2.5, rows)
    x[:, _index("Basket")] = random.lognormal(np.log(33), 0.6, rows)
    x[:, _index("Visits")] = random.poisson(random.gamma(2, 3, rows))
    x[:, _index("Holiday")] = random.random(rows) < (0.5 if promo else HOLIDAYS)
    shares = (0.2, 0.25, 0.25, 0.3) if promo else (0.15, 0.35, 0.3, 0.2)
    x[:, _index("Channel")] = random.choice(len(CHANNELS), rows, p=shares)
    x[:, _index("Promo")] = promo
    return x


def chance(x: Floats, specialisation: float) -> Floats:
    """(rows,) the probability that each of these customers buys. x: (rows, columns), nothing missing; NaN gives NaN."""
    age, income, days, loyalty, basket, visits, holiday, channel, promo = x.T
    inclination = (
        3.8 * (loyalty - 0.44)
        - np.where(promo, 0.45, 0.73) * (np.log1p(days) - 3.15)
        + np.where(promo, 0.0, 1.0) * np.log(income / 33_000)
    )
    mismatches = (
        ((loyalty > 0.44) != (days > np.where(promo, 28, 23))).astype(np.float64)
        + ((age < 44) != (channel >= CHANNELS.index("App")))
        + ((visits > 5) != (basket < 33))
    )
    planned: Floats = expit(1.75 * inclination - 4.2 * mismatches - 0.1 + 0.4 * promo)
    impulse: Floats = 0.025 + 0.395 * expit(5 * (inclination - 0.5 + 0.2 * promo))
    share: Floats = 1 - HOLIDAYS + specialisation * (HOLIDAYS - holiday)
    return share * planned + (1 - share) * impulse


def _fingerprints(x: Floats, first: int) -> NDArray[np.int64]:
    hashed = np.arange(first, first + len(x), dtype=np.uint64)
    for column in x.T:
        hashed = _scrambled(hashed ^ column.view(np.uint64))
    return hashed.view(np.int64)


def _scrambled(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _index(name: str) -> int:
    return [column.name for column in COLUMNS].index(name)
