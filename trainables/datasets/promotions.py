"""Promotional campaigns as a generated table: fitted on rows without a promotion, tested on rows with one.

| column  | Promo = 0                         | Promo = 1          | missing | what                           |
|---------|-----------------------------------|--------------------|---------|--------------------------------|
| Age     | normal(44, 15), 18 to 90, whole   | normal(40, 15)     |         | years                          |
| Income  | lognormal(log 33,000, 0.5), whole | log 30,000         | 4 %     | a year                         |
| Days    | exponential, mean 40, whole       | mean 55            |         | since the last interaction     |
| Loyalty | beta(2, 2.5)                      | beta(2, 3)         | 2 %     | a score, 0 to 1                |
| Basket  | lognormal(log 33, 0.6)            | the same           |         | value of the usual basket      |
| Visits  | Poisson(gamma(2, 3)), mean 6      | the same           |         | of the site, last month        |
| Holiday | 30 %                              | 50 %               |         | 1 on a holiday, 0 on a weekday |
| Channel | .15, .35, .30, .20                | .20, .25, .25, .30 |         | Email, Store, App, Social      |
| Promo   | 0                                 | 1                  |         | constant in each split         |

Columns are drawn independently, and values go missing at random. A customer decides in one of two ways, both steered
by an inclination that is linear in Loyalty, log(1 + Days) and log(Income):
- by plan (9 % buy), a sharp rule: customer and offer must match in three pairs of columns that say next to nothing
  one by one. The loyal buy after a pause and others at once; the young by App or Social and others by Email or Store;
  who visits often buys small baskets and others large ones.
- on impulse (16 % buy), a noisy step: above some inclination four in ten buy, far below it almost nobody.

Under a promotion Days counts for less and Income for nothing, a pause is longer, and the same customers buy more
often either way.

The dial, `specialisation`: 30 % of the rows without a promotion decide on impulse at every setting. At 0 these are any
rows, and Holiday says nothing; at 1 they are the holidays. Boosting finds the interactions, which a forest's trees,
with a few random columns at each split, mostly miss. Where labels are noisy it learns the noise that a forest averages
out, the more so the more rows buy: its leaves must hold a sum of p(1 - p) of 1. Hence the 16 %.

Measured with XGBClassifier and RandomForestClassifier, library defaults, fitted on 4,000 rows: AUC on 40,000 test rows,
mean (standard deviation) over 20 random states, by `python -m tests.test_promotions 20`.

|                                          | dial at 0        | dial at 1       |
|------------------------------------------|------------------|-----------------|
| weekdays: XGBoost                        | 0.7527 (0.0097)  | 0.8555 (0.0166) |
| weekdays: forest                         | 0.7332 (0.0086)  | 0.7781 (0.0124) |
| holidays: XGBoost                        | 0.7523 (0.0098)  | 0.7331 (0.0149) |
| holidays: forest                         | 0.7322 (0.0093)  | 0.7523 (0.0121) |
| all: XGBoost                             | 0.7524 (0.0083)  | 0.7941 (0.0105) |
| all: forest                              | 0.7327 (0.0083)  | 0.7709 (0.0086) |
| all: plain average                       | 0.7511 (0.0068)  | 0.7891 (0.0084) |
| gain of weights 0.8 and 0.2 over it      | -0.0106 (0.0021) | 0.0082 (0.0041) |
| the same, teachers calibrated (Platt)    | -0.0053 (0.0013) | 0.0036 (0.0019) |
| gain of the best gate                    | 0.0000 (0.0000)  | 0.0076 (0.0038) |
| the same, teachers calibrated            | 0.0000 (0.0001)  | 0.0022 (0.0019) |
| XGBoost on rows without a promotion      | 0.7775 (0.0054)  | 0.8484 (0.0087) |
| XGBoost fitted on 4,000 rows with one    | 0.7734 (0.0100)  | 0.8089 (0.0066) |

The weights are XGBoost's on weekdays and on holidays. The best gate is the best pair of weights, each 0, 0.2, ... 1,
against the best single one, chosen on the test rows. At 0 XGBoost is ahead everywhere alike, and two weights only make
the segments' scores less comparable.
"""

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
HOLIDAYS = 0.3  # share of rows without a promotion that are holidays, and of those decided on impulse


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
    """(rows,) of each row's cells and its number, from `first` on; two rows share one by a chance of 2^-64."""
    hashed = np.arange(first, first + len(x), dtype=np.uint64)
    for column in x.T:
        hashed = _scrambled(hashed ^ column.view(np.uint64))
    return hashed.view(np.int64)


def _scrambled(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same bits mixed, one to one: the last step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _index(name: str) -> int:
    return [column.name for column in COLUMNS].index(name)
