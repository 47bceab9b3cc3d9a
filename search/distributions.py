"""A space as Optuna has it. Apart from the search, so that what only shows a sweep needs no Ray."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from spaces import Choice, Range, Space


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """One distribution for each hyperparameter of the space."""
    return {name: _distribution(dimension) for name, dimension in space.items()}


def _distribution(dimension: Range | Choice) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.choices)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
