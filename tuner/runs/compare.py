"""`tuner compare` as a library function: ways to prune side by side, at the same FLOPs, on held-out videos.

Twice: at equal LLM prefill FLOPs, which the budget limits, and the peers at AdaTP's FLOPs end to end, which
are what a user pays: AdaTP needs an aligned encoder, and fewer frames save the vision tower, too.

Every way is set to these by its own ratio, its other parameters as its paper has them. Answers join the
study's records like any other, so nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from pipeline.errors import PipelineError
from pipeline.keep_ratio import Unreachable
from pipeline.methods import (
    AdaTP,
    AdaTPOneShot,
    FastV,
    FastVid,
    FewerFrames,
    Method,
    PyramidDrop,
    RandomTokens,
    VisionZip,
)
from tuner.errors import UserError
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.scoring import answer_cost
from tuner.evaluation.serving import measure_times
from tuner.planning.planner import Planner
from tuner.records.database import default_database
from tuner.records.measurements import Timed
from tuner.records.store import Store
from tuner.records.values import StudyRecord
from tuner.reporting.from_records import (
    Results,
    chosen,
    held_out,
    make_planner,
    unpruned_share,
)
from tuner.reporting.summary import moved_defaults
from tuner.reporting.values import Compared, Comparison, EndToEnd
from tuner.runs.run import InterruptedRunError, RunOptions, Session, prepared
from tuner.search.space import TOLERANCE, SearchSpace
from tuner.study import Search, Study
from tuner.study.values import Configuration


@dataclass(frozen=True)
class Way:
    """One way to prune, before its ratio is set to a budget."""

    # As people call it.
    name: str
    method: Method
    about: str


PEERS = (
    Way("FastV", FastV(), "one pruning before layer 2, by the last prompt token's attention"),
    Way("PyramidDrop", PyramidDrop(), "a pruning after each quarter of the layers, by attention"),
    Way("VisionZip", VisionZip(), "before the model: what the vision tower attends to, the rest merged"),
    Way("FastVID", FastVid(), "before the model: segments, salient tokens, the rest merged into anchors"),
    Way("Fewer frames", FewerFrames(), "uniformly spaced frames, as if only they had been sampled"),
    Way("Random tokens", RandomTokens(), "drawn once before layer 2: what a score has to beat"),
)


Row = tuple[str, str, Configuration]
"""Name, about, configuration."""

TUNED = "AdaTP, tuned"
DEFAULTS = "AdaTP, defaults"


@dataclass(frozen=True)
class Lineup:
    """What is compared, and the smallest FLOPs ratio of what cannot be."""

    rows: tuple[Row, ...]
    unreachable: dict[str, float]

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """Each once."""
        return tuple(dict.fromkeys(configuration for _, _, configuration in self.rows))


def line_up(planner: Planner, search: Search, budget: float, tuned: Configuration | None) -> Lineup:
    """AdaTP tuned (where it was) and at its defaults, then without each of its parts, then its peers.

    The tuned configuration stays as it is; everything else is solved for the budget, so that it fits the tune
    and the held-out part. Where nothing was tuned the parts are taken from the defaults.
    """
    rows: list[Row] = []
    unreachable: dict[str, float] = {}
    defaults = SearchSpace(planner, search, budget).defaults()
    if tuned is not None:
        rows.append((TUNED, "the best configuration of the study's search", tuned))
    if defaults.binding_ratio <= budget + TOLERANCE:
        about = f"all knobs but p at their defaults {moved_defaults(defaults.configuration)}".rstrip()
        rows.append((DEFAULTS, about, defaults.configuration))
    else:
        unreachable[DEFAULTS] = defaults.binding_ratio
    whole = (tuned or defaults.configuration).build()
    ablations = _without_a_part(whole, planner) if isinstance(whole, AdaTP) else ()
    solved = _solved((*ablations, *PEERS), lambda method: planner.solve(method, budget))
    return Lineup((*rows, *solved.rows), unreachable | solved.unreachable)


def line_up_end_to_end(planner: Planner, lineup: Lineup) -> Lineup | None:
    """AdaTP as `lineup` has it (tuned, or at its defaults where nothing was tuned), then its peers at its
    FLOPs end to end; None where AdaTP does not reach the budget.

    AdaTP without one of its parts needs the same encoders, so that equal LLM FLOPs compare it already.
    """
    if not lineup.rows or lineup.rows[0][0] not in (TUNED, DEFAULTS):
        return None
    # With the encoders AdaTP may cost more than the unpruned model, and no peer can.
    target = min(1.0, planner.end_to_end_ratio(lineup.rows[0][2].build()))
    solved = _solved(PEERS, lambda method: planner.solve_end_to_end(method, target))
    return replace(solved, rows=(lineup.rows[0], *solved.rows))


def _solved(ways: Iterable[Way], solve: Callable[[Method], Method | Unreachable]) -> Lineup:
    rows, unreachable = list[Row](), dict[str, float]()
    for way in ways:
        solved = solve(way.method)
        if isinstance(solved, Unreachable):
            unreachable[way.name] = solved.smallest
        else:
            rows.append((way.name, way.about, Configuration.from_method(solved)))
    return Lineup(tuple(rows), unreachable)


def _without_a_part(whole: AdaTP, planner: Planner) -> Iterator[Way]:
    """The knobs as they are, one part off; a part that does nothing here has no such row."""
    if planner.boosts(whole):
        yield Way("AdaTP without the boost", replace(whole, alpha_boost=1.0), "alpha_boost 1")
    if whole.deduplicate != "off":
        yield Way(
            "AdaTP without deduplication",
            replace(whole, deduplicate="off"),
            "repeats of a position rank by attention like any other token",
        )
    yield Way(
        "AdaTP in one shot",
        AdaTPOneShot(**asdict(whole)),
        "what AdaTP keeps after its last pruning, kept from its first on",
    )


def compare(study: Study, options: RunOptions, progress: Progress | None = None) -> Comparison:
    """Measures on the held-out part what is not there yet, and times all ways to prune in turns.

    `options.budget` is needed; a study that was never run is encoded, and its baseline asked, first. Errors:
    as `driver.run`, and UserError when nothing reaches the budget or nothing is held out.
    """
    budget = options.budget
    if budget is None:
        raise UserError("name --budget: ways to prune are compared at one FLOPs ratio")
    if not 0 < budget <= 1:
        raise UserError(f"the budget is a FLOPs ratio in (0, 1], but got {budget:g}")
    if not study.held_out:
        raise UserError(
            f"the study {study.name!r} holds no videos out, and ways to prune are compared on those "
            "(split: held_out in study.yaml)"
        )
    progress = progress or NoProgress()
    # Without a budget of its own: what AdaTP cannot reach, others may.
    options = replace(options, budget=None)
    with prepared(study, options, progress) as session:
        tuned = _tuned(session.study, session.store, session.planner, budget)
        lineup = line_up(session.planner, session.study.search, budget, tuned)
        if not lineup.rows:
            smallest = sorted(lineup.unreachable.items(), key=lambda item: item[1])
            raise UserError(
                f"nothing prunes this study down to the budget {budget:g}; the smallest FLOPs ratios are "
                + ", ".join(f"{ratio:.4f} ({name})" for name, ratio in smallest)
            )
        end_to_end = line_up_end_to_end(session.planner, lineup)
        session.execute(
            session.beside([*lineup.configurations, *(end_to_end.configurations if end_to_end else ())])
        )
        _time(session, lineup.configurations)
        return _comparison(session.study, session.store, session.record, budget, lineup, session.machine)


def load_comparison(study: Study, budget: float, database: str | None = None) -> Comparison | None:
    """What `compare` measured at this budget, from the records alone; None where it never ran to its end.

    What hangs on a configuration that was tuned since is left out. Errors: UserError when the study was never
    run.
    """
    with Store.open(database or default_database(study.name), create=False) as store:
        record = store.require(study.name)
        planner = make_planner(record)
        lineup = line_up(planner, study.search, budget, _tuned(study, store, planner, budget))
        measured = store.measured()
        # AdaTP's own rows may come from `tuner run`, and one peer may be the same at another budget.
        names = {way.method.name for way in PEERS}
        peers = [configuration for configuration in lineup.configurations if configuration.method in names]
        if not peers or any(peer not in measured for peer in peers):
            return None
        return _comparison(study, store, record, budget, lineup)


def _tuned(study: Study, store: Store, planner: Planner, budget: float) -> Configuration | None:
    """What the latest search within this budget has come to."""
    searches = [search for search in store.searches() if search.goal == "budget" and search.budget == budget]
    choice = chosen(study, store, planner, searches[-1]) if searches else None
    return None if choice is None else choice.trial.configuration


def _comparison(
    study: Study,
    store: Store,
    record: StudyRecord,
    budget: float,
    lineup: Lineup,
    machine: str | None = None,
) -> Comparison:
    """Of the lineup what is measured; times of this machine, or of where they were measured last."""
    planner = make_planner(record)
    results = Results(study, store, planner)
    measured, timed = store.measured(), store.timed(lineup.configurations, machine)
    baseline = results.of(None, "held_out")

    def compared(lineup: Lineup, timed: Mapping[Configuration, Timed]) -> tuple[Compared, ...]:
        return tuple(
            Compared(
                name,
                held_out(configuration, measured[configuration], results),
                about,
                timed.get(configuration),
            )
            for name, about, configuration in lineup.rows
            if configuration in measured
        )

    second = line_up_end_to_end(planner, lineup)
    # All or nothing: records of an older version, or with another best trial since, have a part of it.
    complete = second is not None and all(
        configuration in measured for configuration in second.configurations
    )
    return Comparison(
        study=study.name,
        study_hash=record.hash,
        budget=budget,
        baseline=unpruned_share(study, baseline),
        baseline_cost=answer_cost(baseline),
        rows=compared(lineup, timed),
        unreachable=lineup.unreachable,
        labelled=study.labelled,
        end_to_end=EndToEnd(compared(second, {}), second.unreachable) if second and complete else None,
    )


def _time(session: Session, configurations: Sequence[Configuration]) -> None:
    """Times all of them anew unless all are there: seconds of different moments do not compare, nor do those
    of the stored answers.

    It changes nothing else: where it cannot be measured, that is said.
    """
    if len(session.store.timed(configurations, session.machine)) == len(configurations):
        return
    try:
        found = measure_times(
            session.workers.run_whole,
            session.planner,
            [configuration.build() for configuration in configurations],
            session.progress,
            leave_out=session.store.quarantined(),
        )
    except (PipelineError, UserError) as error:
        session.progress.message(f"Times could not be measured: {error}")
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "Interrupted while timing. Everything answered is kept: the same command times again."
        ) from None
    else:
        session.store.record_timed(session.measured_on, dict(zip(configurations, found, strict=True)))
