"""What the verdict on a published claim means, in one plain sentence."""

from analysis.units import Unit
from spaces import Claim


def sentence(
    claim: Claim, measured: float | None, interval: tuple[float, float] | None, verdict: str | None, metric: str
) -> str:
    """One sentence for a reader who knows no verdict by its name.

    measured, interval: better minus worse, None where it was not measured or has no interval; verdict: of
    `statistics.claim_verdict`, `not comparable (why)`, or None before the confirmation; metric: accuracy or auc.
    A published loss is told the other way round: what it says is that `worse` beats `better`.
    """
    unit = Unit.of(metric)
    better, worse, published = claim.better, claim.worse, claim.gain
    if measured is None:
        return f"Not measured yet: whether {better} beats {worse}."
    if published < 0:
        better, worse, published, measured = worse, better, -published, -measured
        interval = None if interval is None else (-interval[1], -interval[0])
    reported = f"{unit.scale * published:.{unit.digits}f} {unit.points}"
    half = f"{unit.scale * published / 2:.{unit.digits}f} {unit.points}"
    found = f"{unit.difference(measured)} {unit.points} {unit.interval(interval, sign=True)}".rstrip()
    if verdict is None:
        return f"No verdict on whether {better} beats {worse}: {found} measured, {reported} published."
    if verdict.startswith("not comparable"):
        return f"No verdict, since this sweep does not repeat what was published; here {better} - {worse} is {found}."
    if verdict == "replicates":
        return (
            f"The claim holds here: {better} beats {worse} by {found}, surely half or more of the published {reported}."
        )
    if verdict == "smaller":
        return f"{better} does beat {worse} here, but by less than was published: {found} against {reported}."
    if verdict == "reversed":
        return f"It is the other way round here: {worse} beats {better}; {found} measured, {reported} published."
    if verdict == "not distinguishable from noise":
        return f"Here nothing tells {better} from {worse}: {found}, no room for half of the published {reported}."
    if interval is None:
        return f"One seed decides nothing: {found} measured, {reported} published."
    if interval[0] > 0:
        return (
            f"{better} beats {worse} here ({found}), but whether by half of the {reported} published or by all of it, "
            f"these seeds and rows cannot tell."
        )
    return (
        f"These seeds and rows cannot decide: {found} is compatible with no gain, and with {half}, half of what was "
        f"published."
    )
