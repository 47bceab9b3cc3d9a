"""search/state.py, driven by simulated trials: the properties of DESIGN's promises 2 and 5, read off whole searches."""

import dataclasses
import math
import random
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.ledger import Ledger
from search.state import CRASHES_IN_A_ROW, SearchState
from spaces import A_A_CONTROL, BASELINE
from tests.made_ledgers import new_run, row
from tests.simulated_search import BUDGET, CONCURRENT, LARGEST_STEP, RUNGS, SEEDS, STUDY, Simulator


@pytest.fixture(scope="module", params=range(5))
def sweep(request, tmp_path_factory):
    """A whole simulated search, and every call of `Study.tell` that it made, by Optuna study and trial number."""
    tell, told = optuna.study.Study.tell, Counter()

    def counted(study, trial, *args, **kwargs):
        told[id(study), trial.number] += 1
        return tell(study, trial, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, new_run(tmp_path_factory.mktemp("run"), STUDY) as ledger:
        patch.setattr(optuna.study.Study, "tell", counted)
        state = SearchState(STUDY, ledger, seed=request.param)
        simulator = Simulator(state, request.param)
        simulator.run()
        yield SimpleNamespace(
            state=state,
            simulator=simulator,
            told=told,
            trials=ledger.trials(),
            epochs=ledger.epochs(),
            ends=ledger.ends(),
        )


def by_subsearch(trials):
    """{(arm, sub-search): its trials in the order in which they were asked}"""
    groups = defaultdict(list)
    for t in trials:
        groups[t.arm, t.subsearch].append(t)
    return groups


def spent(ledger):
    arm_of = {t.trial: t.arm for t in ledger.trials()}
    total = dict.fromkeys(STUDY.searched, 0)
    for r in ledger.epochs():
        total[arm_of[r.trial]] += r.seeds
    return total


def reports_to(epoch, score=0.5):
    """What a trial reports from its first epoch to this one."""
    return [row(e, score, seeds=SEEDS) for e in range(1, epoch + 1)]


def spends_of(state):
    return {arm: s.spent for arm, s in state.standing.items()}


# The simulator makes every kind of trouble, or the tests below would hold for nothing.


def test_the_simulated_sweeps_meet_every_kind_of_end(sweep):
    assert {e.how for e in sweep.ends.values()} >= {"finished", "stopped", "diverged", "crashed"}
    assert any(e.how == "diverged" and e.epoch > RUNGS[0] for e in sweep.ends.values())


# Budgets.


def test_what_an_arm_has_spent_is_what_the_ledger_adds_up_to(sweep):
    assert spends_of(sweep.state) == spent(sweep.state.ledger)


def test_every_arm_spends_its_budget_and_little_more(sweep):
    for arm, cost in spends_of(sweep.state).items():
        assert 0 <= cost - BUDGET.search_seed_epochs < CONCURRENT * LARGEST_STEP, arm


def test_the_next_trial_goes_to_the_arm_that_has_spent_and_reserved_least(sweep):
    assert len(sweep.simulator.asked) == len(sweep.trials)
    for arm, committed in sweep.simulator.asked:
        assert committed[arm] == min(committed.values()) < BUDGET.search_seed_epochs


def test_every_epoch_of_a_trial_is_paid_for_once(sweep):
    epochs = defaultdict(list)
    for r in sweep.epochs:
        epochs[r.trial].append(r.epoch)
    for trial, reported in epochs.items():
        assert reported == list(range(1, sweep.simulator.reached[trial] + 1))


# Identities, proposals, seeds.


def test_trials_are_numbered_within_their_arm_and_go_round_robin_to_the_sub_searches(sweep):
    for arm in STUDY.searched:
        own = [t for t in sweep.trials if t.arm == arm]
        assert [t.trial for t in own] == [f"{arm}-{n:05d}" for n in range(len(own))]
        assert [t.subsearch for t in own] == [n % BUDGET.subsearches for n in range(len(own))]


def test_every_sub_search_begins_with_the_default_then_sobol_then_tpe(sweep):
    for (arm, _), trials in by_subsearch(sweep.trials).items():
        assert trials[0].config == STUDY.arms[arm].default
        origins = [t.origin for t in trials]
        sobol = origins.count("sobol")
        assert sobol >= 3
        assert origins == ["default"] + ["sobol"] * sobol + ["tpe"] * (len(trials) - 1 - sobol)


def test_every_configuration_lies_in_its_space(sweep):
    for t in sweep.trials:
        assert t.config.keys() == STUDY.arms[t.arm].default.keys()
        assert all(d.contains(t.config[name]) for name, d in STUDY.arms[t.arm].space.items())


def test_what_an_arm_does_not_search_stays_at_its_default(tmp_path):
    kd = STUDY.arms["kd"]
    narrow = dataclasses.replace(kd, space={"temperature": kd.space["temperature"]})
    study = dataclasses.replace(STUDY, arms={**STUDY.arms, "kd": narrow})
    with new_run(tmp_path, study) as ledger:
        state = SearchState(study, ledger, seed=0)
        for _ in range(40):
            record = state.next_trial().record
            state.report(record.trial, [row(1, None, seeds=SEEDS)], diverged=True)
        configs = [t.config for t in ledger.trials() if t.arm == "kd"]
        assert len({c["temperature"] for c in configs}) == len(configs) - 1  # the default, in both sub-searches
        assert all({**c, "temperature": kd.default["temperature"]} == kd.default for c in configs)


def test_the_sobol_slice_shares_its_values_across_arms_but_not_with_the_a_a_control(sweep):
    shared = STUDY.arms[BASELINE].space
    points = {
        key: [{name: t.config[name] for name in shared} for t in trials if t.origin == "sobol"]
        for key, trials in by_subsearch(sweep.trials).items()
    }
    for g in range(BUDGET.subsearches):
        baseline, kd, again = (points[arm, g] for arm in (BASELINE, "kd", A_A_CONTROL))
        both = min(len(baseline), len(kd))  # an arm may have spent its budget before its slice was used up
        assert kd[:both] == baseline[:both]
        assert all(a != b for a, b in zip(again, baseline, strict=False))
    assert points[BASELINE, 0] != points[BASELINE, 1]


def test_arms_share_their_seeds_but_the_a_a_control_has_others(sweep):
    packs = defaultdict(set)
    for t in sweep.trials:
        packs[t.arm, t.subsearch].add(sweep.state.replicates(t))
    assert {len(pack) for p in packs.values() for pack in p} == {SEEDS}
    seeds = {key: {r for pack in p for r in pack} for key, p in packs.items()}
    for g in range(BUDGET.subsearches):
        assert packs["kd", g] == packs[BASELINE, g]
        assert len(packs["kd", g]) == 1
    again = {r for (arm, _), own in seeds.items() if arm == A_A_CONTROL for r in own}
    others = {r for (arm, _), own in seeds.items() if arm != A_A_CONTROL for r in own}
    assert not again & others
    assert not seeds["kd", 0] & seeds["kd", 1]


# Rungs.


def test_a_trial_is_stopped_only_more_than_one_standard_error_below_the_cut(sweep):
    """The cut: the 67th percentile of what reached this rung of the same sub-search before."""
    subsearch_of = {t.trial: (t.arm, t.subsearch) for t in sweep.trials}
    before, spared = defaultdict(list), 0
    for d in sweep.simulator.decisions:
        there = before[subsearch_of[d.trial], d.rung]
        cut = np.percentile(there, 100 * (1 - 1 / BUDGET.reduction_factor)) if there else -math.inf
        how = sweep.ends[d.trial].how if sweep.ends[d.trial].epoch == d.rung else "went on"
        if d.rung < RUNGS[-1]:
            assert (how == "stopped") == (d.score + d.se < cut)
            spared += cut - d.se <= d.score < cut
        there.append(d.score)
    assert spared > 0


def test_a_trial_ends_finished_where_and_only_where_it_reached_max_epochs(sweep):
    for trial, end in sweep.ends.items():
        assert (end.how == "finished") == (sweep.simulator.reached[trial] == BUDGET.max_epochs)
        assert end.epoch == sweep.simulator.reached[trial]


def test_no_trial_is_ended_for_the_budget_before_its_arm_has_spent_it(sweep):
    arm_of = {t.trial: t.arm for t in sweep.trials}
    cost, at = Counter(), {}
    for r in sweep.epochs:
        cost[arm_of[r.trial]] += r.seeds
        at[r.trial] = cost[arm_of[r.trial]]
    assert all(at[t] >= BUDGET.search_seed_epochs for t, e in sweep.ends.items() if e.how == "budget")


def test_a_trial_is_ended_at_the_rung_where_its_arm_has_spent_its_budget(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        record = state.next_trial().record
        state.standing[record.arm].spent = BUDGET.search_seed_epochs - RUNGS[0] * SEEDS
        assert not state.report(record.trial, reports_to(RUNGS[0]), False)
        assert ledger.ends()[record.trial].how == "budget"


def test_the_best_so_far_is_the_best_score_at_the_highest_rung(sweep):
    for arm, standing in sweep.state.standing.items():
        scores = [(d.rung, d.score, d.se) for d in sweep.simulator.decisions if sweep.simulator.arm_of[d.trial] == arm]
        assert (standing.best_rung, standing.best_score, standing.best_se) == max(scores)


# What Optuna is told.

STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "budget": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "crashed": TrialState.FAIL,
}


def optuna_trials(state, trials):
    """{our name: Optuna's trial}, which are asked in the same order."""
    return {
        t.trial: o
        for key, own in by_subsearch(trials).items()
        for t, o in zip(own, state._subsearches[key].study.trials, strict=True)
    }


def test_optuna_is_told_of_every_asked_trial_exactly_once(sweep):
    assert sweep.ends.keys() == {t.trial for t in sweep.trials}
    assert len(sweep.told) == len(sweep.trials)
    assert set(sweep.told.values()) == {1}


def test_optuna_hears_how_each_trial_ended_and_what_it_scored_at_rungs(sweep):
    at_rungs = defaultdict(dict)
    for d in sweep.simulator.decisions:
        at_rungs[d.trial][d.rung] = d.score
    for name, told in optuna_trials(sweep.state, sweep.trials).items():
        how, scores = sweep.ends[name].how, at_rungs[name]
        assert told.state == STATES[how]
        if how == "finished":
            assert told.values == [scores[BUDGET.max_epochs]]
        if how in ("stopped", "budget"):
            assert told.intermediate_values == scores != {}
        if how == "diverged":
            assert told.intermediate_values == {}


def test_optuna_knows_the_configurations_that_were_asked(sweep):
    configs = {t.trial: t for t in sweep.trials}
    for name, told in optuna_trials(sweep.state, sweep.trials).items():
        asked = configs[name]
        assert told.params == {k: asked.config[k] for k in STUDY.arms[asked.arm].space}


# Repeats.


def test_a_repeated_report_at_a_rung_costs_nothing_and_decides_nothing(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        live = state.next_trial()
        name = live.record.trial
        to_second = reports_to(RUNGS[1])
        assert state.report(name, to_second[: RUNGS[0]], diverged=False)
        assert state.report(name, to_second, diverged=False)
        state.standing[live.record.arm].spent = BUDGET.search_seed_epochs  # a decision now would end it
        before = (live.epoch, live.reserved, spends_of(state), rungs_of(state))
        assert state.report(name, to_second[: RUNGS[0]], diverged=False)
        assert (live.epoch, live.reserved, spends_of(state), rungs_of(state)) == before


def test_a_repeat_with_another_score_overwrites_nothing(tmp_path):
    """A GPU that does not compute the same twice; the ledger keeps what came first."""
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        name = state.next_trial().record.trial
        for score in (0.5, 0.9):
            state.report(name, reports_to(RUNGS[0], score), diverged=False)
        assert state.standing[BASELINE].best_score == 0.5
        state.standing[BASELINE].spent = BUDGET.search_seed_epochs
        state.report(name, reports_to(RUNGS[1], 0.6)[RUNGS[0] :], diverged=False)
        (told,) = state._subsearches[BASELINE, 0].study.trials
        assert told.intermediate_values == {RUNGS[0]: 0.5, RUNGS[1]: 0.6}


# Stopping, crashing.


def test_while_stopping_a_trial_leaves_unfinished_and_is_taken_up_in_the_next_life(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        record = state.next_trial().record
        state.stopping = True
        assert not state.report(record.trial, [row(1, 0.5, seeds=SEEDS)], diverged=False)
        state.leave(record.trial)
        assert (state.live, ledger.ends()) == ({}, {})
        assert [(w.record, w.epoch) for w in SearchState(STUDY, ledger, seed=0).waiting] == [(record, 1)]


def test_a_crash_that_is_not_its_own_fault_is_tried_three_times_under_one_name(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        record = state.next_trial().record
        for _ in range(2):
            state.crash(record.trial, "its node was lost", own_fault=False)
            assert ledger.ends() == {}
            assert state.next_trial().record == record
        state.crash(record.trial, "its node was lost", own_fault=False)
        assert ledger.ends()[record.trial].how == "crashed"
        assert state.next_trial().record.trial != record.trial


def crash_or_pass(state, crashing, crashes):
    """Start trials; those of one arm crash until `crashes` have, every other goes to its first rung and on."""
    while crashes and not state.failure:
        live = state.next_trial()
        if live.record.arm == crashing:
            state.crash(live.record.trial, "ValueError: a bug", own_fault=True)
            crashes -= 1
        else:
            state.report(live.record.trial, reports_to(RUNGS[0]), diverged=False)


def test_crashes_in_a_row_of_one_arm_fail_the_sweep(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        crash_or_pass(state, "kd", CRASHES_IN_A_ROW - 1)
        assert (state.failure, state.stopping) == (None, False)
        crash_or_pass(state, "kd", 1)
        assert state.stopping
        for word in (f"{CRASHES_IN_A_ROW} trials", "kd", "ValueError: a bug"):
            assert word in state.failure
        assert sum(e.how == "crashed" for e in ledger.ends().values()) == CRASHES_IN_A_ROW


def test_a_trial_that_ends_otherwise_breaks_the_row_of_crashes(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        crash_or_pass(state, "kd", CRASHES_IN_A_ROW - 1)
        while (live := state.next_trial()).record.arm != "kd":
            pass
        state.report(live.record.trial, [row(1, None, seeds=SEEDS)], diverged=True)
        crash_or_pass(state, "kd", CRASHES_IN_A_ROW - 1)
        assert (state.failure, state.stopping) == (None, False)


# Beginning again.


def rungs_of(state):
    """ASHA's records: {(arm, sub-search): [(rung, {trial: score})]}."""
    return {
        key: [(rung, dict(scores)) for rung, scores in s._asha._brackets[0]._rungs]
        for key, s in state._subsearches.items()
    }


def what_optuna_knows(state):
    """By sub-search, every trial's state and parameters, and its value, or else what it reported: TPE reads no more."""
    return {
        key: [
            (t.state, t.params, t.values if t.state == TrialState.COMPLETE else t.intermediate_values)
            for t in s.study.trials
        ]
        for key, s in state._subsearches.items()
    }


def unfinished(state):
    return {w.record.trial: (w.record, w.epoch, w.reserved) for w in (*state.live.values(), *state.waiting)}


def interrupted(run, seed):
    """A search that stops dead after some steps: its state, and a random number generator to go on with."""
    rng = random.Random(seed)
    state = SearchState(STUDY, new_run(run, STUDY), seed)
    Simulator(state, seed).run(steps=rng.randint(5, 150))
    return state


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_search_is_rebuilt_as_it_was(tmp_path, seed):
    before = interrupted(tmp_path, seed)
    before.ledger.close()
    with Ledger.open(tmp_path) as ledger:
        after = SearchState(STUDY, ledger, seed)
        assert after.standing == before.standing
        assert unfinished(after) == unfinished(before) != {}
        assert after.live == {}
        assert rungs_of(after) == rungs_of(before)
        assert what_optuna_knows(after) == what_optuna_knows(before)
        assert after.stopping is False


@pytest.mark.parametrize("seed", range(3))
def test_a_search_interrupted_again_and_again_loses_repeats_and_recounts_nothing(tmp_path, seed):
    interrupted(tmp_path, seed).ledger.close()
    rng = random.Random(-seed)
    for life, steps in enumerate((rng.randint(1, 30), rng.randint(1, 30), math.inf), start=1):
        with Ledger.open(tmp_path) as ledger:
            state = SearchState(STUDY, ledger, seed)
            Simulator(state, seed, events=life).run(steps)
    assert_nothing_lost_repeated_or_recounted(tmp_path)
    assert all(s - BUDGET.search_seed_epochs < CONCURRENT * LARGEST_STEP for s in spends_of(state).values())


def assert_nothing_lost_repeated_or_recounted(run):
    with Ledger.open(run) as ledger:
        trials, ends, epochs = ledger.trials(), ledger.ends(), ledger.epochs()
        assert ends.keys() == {t.trial for t in trials}
        for arm, cost in spent(ledger).items():
            own = [t.trial for t in trials if t.arm == arm]
            assert own == [f"{arm}-{n:05d}" for n in range(len(own))]
            assert cost >= BUDGET.search_seed_epochs
        for own in by_subsearch(trials).values():
            origins = [t.origin for t in own]
            assert origins == sorted(origins)  # default, sobol, tpe
            assert origins.count("default") == 1
            assert len({str(t.config) for t in own}) == len(own)
        reached = defaultdict(list)
        for r in epochs:
            reached[r.trial].append(r.epoch)
        assert all(e == list(range(1, ends[t].epoch + 1)) for t, e in reached.items())
        rebuilt = SearchState(STUDY, ledger, 0)
        assert (rebuilt.waiting, rebuilt.live) == ([], {})
        assert spends_of(rebuilt) == spent(ledger)
        for name, told in optuna_trials(rebuilt, trials).items():
            assert told.state == STATES[ends[name].how]


class Killed(BaseException):
    pass


def kill_after(ledger, writes):
    """Let the process die right after so many of the search's writes to the ledger."""
    left = [writes]

    def dying(write):
        def written(*args):
            result = write(*args)
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return result

        return written

    for name in ("ask", "report", "end"):
        setattr(ledger, name, dying(getattr(ledger, name)))


@pytest.mark.parametrize("seed", range(4))
def test_a_search_killed_between_two_writes_goes_on_from_what_was_written(tmp_path, seed):
    """Between a report and the end that it brings, or an ask and the start, too."""
    rng = random.Random(seed)
    new_run(tmp_path, STUDY).close()
    for life in range(8):
        with Ledger.open(tmp_path) as ledger:
            state = SearchState(STUDY, ledger, seed)
            ends = ledger.ends()
            assert spends_of(state) == spent(ledger)
            assert {a: s.asked for a, s in state.standing.items()} == {
                a: sum(t.arm == a for t in ledger.trials()) for a in STUDY.searched
            }
            assert sum(s.ended for s in state.standing.values()) == len(ends)
            assert [w.record for w in state.waiting] == [t for t in ledger.trials() if t.trial not in ends]
            kill_after(ledger, rng.randint(1, 25))
            with pytest.raises(Killed):
                Simulator(state, seed, events=life).run()
    with Ledger.open(tmp_path) as ledger:
        Simulator(SearchState(STUDY, ledger, seed), seed).run()
    assert_nothing_lost_repeated_or_recounted(tmp_path)


def test_optuna_hears_of_the_rungs_of_an_earlier_life_too(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        state.report(state.next_trial().record.trial, reports_to(RUNGS[0], 0.5), diverged=False)
        again = SearchState(STUDY, ledger, seed=0)
        again.standing[BASELINE].spent = BUDGET.search_seed_epochs  # so that it ends at the next rung
        again.report(again.next_trial().record.trial, reports_to(RUNGS[1], 0.6)[RUNGS[0] :], diverged=False)
        (told,) = again._subsearches[BASELINE, 0].study.trials
        assert told.state == TrialState.PRUNED
        assert told.intermediate_values == {RUNGS[0]: 0.5, RUNGS[1]: 0.6}


def test_a_trial_that_had_reported_everything_is_finished_on_the_way_back(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        name = state.next_trial().record.trial
        ledger.report(name, reports_to(RUNGS[-1]))  # killed before its end
        again = SearchState(STUDY, ledger, seed=0)
        assert (again.waiting, again.live) == ([], {})
        assert ledger.ends()[name].how == "finished"
        assert again.standing[BASELINE].ended == 1


# What a kill or a divergence at an awkward moment leaves behind.


def diverged_after_a_rung(ledger):
    state = SearchState(STUDY, ledger, seed=0)
    name = state.next_trial().record.trial
    state.report(name, reports_to(RUNGS[0]), diverged=False)
    state.report(name, [row(RUNGS[0] + 1, None, seeds=SEEDS)], diverged=True)
    return state


def test_a_trial_that_diverges_after_a_rung_is_pruned_without_intermediate_values(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        (told,) = diverged_after_a_rung(ledger)._subsearches[BASELINE, 0].study.trials
        assert told.state == TrialState.PRUNED
        assert told.intermediate_values == {}


def test_a_search_with_a_trial_that_diverged_after_a_rung_is_rebuilt_as_it_was(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        before = diverged_after_a_rung(ledger)
        after = SearchState(STUDY, ledger, seed=0)
        assert rungs_of(after) == rungs_of(before)
        assert str(after.standing) == str(before.standing)
        assert what_optuna_knows(after) == what_optuna_knows(before)


def test_a_divergence_at_the_last_epoch_is_not_taken_for_a_finish_on_the_way_back(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        name = SearchState(STUDY, ledger, seed=0).next_trial().record.trial
        ledger.report(name, [*reports_to(RUNGS[-1] - 1), row(RUNGS[-1], None, seeds=SEEDS, se=None)])
        SearchState(STUDY, ledger, seed=0)
        assert ledger.ends()[name].how == "diverged"


def test_a_score_that_is_no_number_is_a_divergence(tmp_path):
    """A user's trainable whose metric is NaN while its losses are finite."""
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        name = state.next_trial().record.trial
        assert not state.report(name, reports_to(RUNGS[0], math.nan), diverged=False)
        assert ledger.ends()[name].how == "diverged"
        SearchState(STUDY, ledger, seed=0)


def test_a_decision_that_a_kill_cut_off_is_made_on_the_way_back(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        state = SearchState(STUDY, ledger, seed=0)
        own = []
        while len(own) < 2:
            record = state.next_trial().record
            if (record.arm, record.subsearch) == (BASELINE, 0):
                own.append(record.trial)
        good, bad = own
        state.report(good, reports_to(RUNGS[0], 0.9), diverged=False)
        ledger.report(bad, reports_to(RUNGS[0], 0.1))  # killed before it was told to stop
        again = SearchState(STUDY, ledger, seed=0)
        assert ledger.ends()[bad].how == "stopped"
        assert all(live.record.trial != bad for live in again.waiting)


def test_a_resumed_search_proposes_no_configuration_again(tmp_path):
    """As long as fewer trials have ended than TPE starts up with, it draws at random."""

    def proposal_of_tpe(state):
        known = [t.trial for t in state.ledger.trials()]
        while True:
            t = state.next_trial().record
            if t.trial not in known and (t.arm, t.subsearch, t.origin) == (BASELINE, 0, "tpe"):
                return t.config

    with new_run(tmp_path, STUDY) as ledger:
        first = proposal_of_tpe(SearchState(STUDY, ledger, seed=0))
        assert proposal_of_tpe(SearchState(STUDY, ledger, seed=0)) != first
