"""analysis/claims.py: every verdict in one sentence, and each of them says what the verdict says."""

import pytest

from analysis.claims import sentence
from analysis.statistics import claim_verdict
from spaces import Claim

CLAIM = Claim("kd", "hard_labels", 0.008, "an article")


@pytest.mark.parametrize(
    ("interval", "verdict", "says"),
    [
        ((0.005, 0.009), "replicates", "The claim holds here: kd beats hard_labels by +0.70 points [+0.50, +0.90]"),
        ((0.001, 0.006), "smaller", "kd does beat hard_labels here, but by less than was published: +0.35 points"),
        ((-0.005, -0.001), "reversed", "It is the other way round here: hard_labels beats kd; -0.30 points"),
        ((-0.002, 0.003), "not distinguishable from noise", "no room for half of the published 0.80 points"),
        ((-0.002, 0.006), "inconclusive", "compatible with no gain, and with 0.40 points, half of what was published"),
        (
            (0.001, 0.009),
            "inconclusive",
            "kd beats hard_labels here (+0.50 points [+0.10, +0.90]), but whether by half",
        ),
        (None, "inconclusive", "One seed decides nothing: +0.50 points measured, 0.80 points published."),
    ],
)
def test_a_verdict_in_words(interval, verdict, says):
    assert claim_verdict(CLAIM.gain, *(interval or (None, None))) == verdict
    measured = sum(interval) / 2 if interval else 0.005
    assert says in sentence(CLAIM, measured, interval, verdict, "accuracy")


@pytest.mark.parametrize(
    "interval", [(0.005, 0.009), (0.001, 0.006), (-0.005, -0.001), (-0.002, 0.003), (-0.002, 0.006)]
)
def test_a_published_loss_is_told_as_the_gain_of_the_other(interval):
    low, high = interval
    mirrored = Claim("hard_labels", "kd", -CLAIM.gain, "an article")
    verdict = claim_verdict(mirrored.gain, -high, -low)
    told = sentence(mirrored, -(low + high) / 2, (-high, -low), verdict, "accuracy")
    assert told == sentence(CLAIM, (low + high) / 2, interval, verdict, "accuracy")


def test_what_has_no_verdict_says_why():
    assert sentence(CLAIM, None, None, None, "accuracy") == "Not measured yet: whether kd beats hard_labels."
    told = sentence(CLAIM, 0.002, (0.001, 0.003), "not comparable (other data)", "auc")
    assert told == (
        "No verdict, since this sweep does not repeat what was published; here kd - hard_labels is +0.0020 AUC "
        "[+0.0010, +0.0030]."
    )
