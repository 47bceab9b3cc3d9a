"""Which replicates each use of a sweep trains: the three uses, rounds and sub-searches never share a seed.

Seeds are paired across arms: an arm's number adds nothing. Only the A/A control has seeds of its own, or it would
repeat the baseline bit by bit.
"""

from spaces import A_A_CONTROL, Study

# Apart from one another, so that what is selected is confirmed under seeds that it has not seen.
SEARCH, REEVALUATION, CONFIRMATION = 0, 1_000_000, 2_000_000
A_A_OFFSET = 500_000
PER_ROUND = 20_000  # a sweep that is given more search budget is confirmed under seeds that it has not been judged by
PER_SUBSEARCH = 1_000


def arm_offset(arm: str) -> int:
    """What is added to every replicate number of an arm: 0, but for the A/A control."""
    return A_A_OFFSET if arm == A_A_CONTROL else 0


def of_search(study: Study, arm: str, subsearch: int) -> range:
    """The pack of every trial of a sub-search."""
    return _from(SEARCH + arm_offset(arm) + subsearch * PER_SUBSEARCH, study.budget.seeds_per_trial)


def of_reevaluation(study: Study, arm: str, subsearch: int) -> range:
    """The fresh seeds on validation of a sub-search's best trials."""
    _, seeds = study.budget.reevaluation
    return _from(REEVALUATION + arm_offset(arm) + subsearch * PER_SUBSEARCH, seeds)


def of_confirmation(study: Study, arm: str, subsearch: int, number: int) -> range:
    """A winner's share of the confirmation seeds of the round `number`."""
    share = study.budget.confirm_seeds // study.budget.subsearches
    return _from(CONFIRMATION + arm_offset(arm) + number * PER_ROUND + subsearch * PER_SUBSEARCH, share)


def of_given(study: Study, arm: str) -> range:
    """All confirmation seeds, for a published or fixed configuration: no round changes what it is."""
    seeds = study.confirm_teachers if study.arms[arm].role == "reference" else study.budget.confirm_seeds
    return _from(CONFIRMATION + arm_offset(arm), seeds)


def _from(first: int, count: int) -> range:
    return range(first, first + count)
