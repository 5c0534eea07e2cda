"""What `schedd simulate` makes of its runs: which is best, by how much, how sure, and what to write down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from schedd.cli.output import Column, Output
from schedd.cli.simulated import UNRECORDED
from schedd.cli.variants import Variant

if TYPE_CHECKING:
    from schedd.simulate.compare import Standing, Values
    from schedd.simulate.history import History

COLUMNS = (
    Column("policy"),
    Column("objective", right=True),
    Column("the best is less by", right=True),
    Column("95 %", right=True),
    Column("best in", right=True),
)
WORDS = {
    "mean_flow_time": "mean JCT, s",
    "makespan": "makespan, s",
    "p99_flow_time": "p99 JCT, s",
    "mean_bounded_slowdown": "slowdown",
}


class Verdict:
    """Compares once, and writes it for people or as JSON."""

    def __init__(
        self,
        variants: Mapping[str, Variant],
        values: Mapping[str, Values],
        in_use: str,
        history: History | None,
        *,
        configured: bool,
    ) -> None:
        """in_use: the policy that the best is measured by, where it has run: the configured one, else the default."""
        from schedd.simulate.compare import standings

        self._objective = next(iter(values.values())).objective
        self._in_use = in_use if in_use in values else None
        self._word = "which is in use" if configured else "the default"
        self._standings = standings(values, self._in_use)
        #: The best of the runs.
        self.best = next(iter(self._standings))
        #: What it would be on the cluster without the workers that were added; None: none were.
        self.without_added: float | None = None
        self._policy = variants[self.best].policy
        self._toml = variants[self.best].toml()
        self._history = history

    @property
    def _lead(self) -> Standing | None:
        """What the best gains over what is in use; None where it is that, or that has not run."""
        return None if self._in_use in (None, self.best) else self._standings[self._in_use or ""]

    @property
    def _is_sure(self) -> bool:
        lead = self._lead
        return lead is not None and lead.low is not None and lead.low > 0 and not self._fails_more

    @property
    def _fails_more(self) -> bool:
        """Whether more tasks fail under the best than under what is in use, or else than under any other."""
        other = self._standings.get(self._in_use or "")
        least = min(each.failed for each in self._standings.values()) if other is None else other.failed
        return self._standings[self.best].failed > least

    def as_json(self) -> dict[str, Any]:
        """What is added to the JSON of the runs."""
        from msgspec import structs

        lead = self._lead
        told: dict[str, Any] = {
            "best": {
                "policy": self.best,
                "objective": self._objective,
                "in_use": self._in_use,
                "gain": lead.behind if lead is not None else None,
                "gain_ci95": None if lead is None or lead.low is None else [lead.low, lead.high],
                "wins": self._standings[self.best].wins,
                "sure": self._is_sure,
                "config": self._toml,
                "without_added": self.without_added,
            },
            "standings": {name: structs.asdict(each) for name, each in self._standings.items()},
        }
        if self._history is not None:
            from schedd.simulate.metrics import figures_of

            was = self._history.recorded
            told["recorded"] = None if was is None else structs.asdict(figures_of(was)) | UNRECORDED
            told["left_out"] = structs.asdict(self._history.left_out)
        return told

    def write(self, out: Output) -> None:
        """Write it for people."""
        if len(self._standings) > 1:
            out.line("")
            columns = (COLUMNS[0], Column(WORDS[self._objective], right=True), *COLUMNS[2:])
            out.table(columns, [_row(name, each) for name, each in self._standings.items()])
        out.line("")
        out.line(self._sentence())
        if any(each.failed for each in self._standings.values()):
            told = ", ".join(f"{each.failed:,g} under {name}" for name, each in self._standings.items())
            out.line(f"tasks that failed are left out of all runs: {told}")
        if self.without_added:
            value = self._standings[self.best].value
            less = f"{1 - value / self.without_added:.1%}"
            words = f"{WORDS[self._objective]}: {value:,.2f} instead of {self.without_added:,.2f}, {less} less"
            out.line(f"with the added workers, under {self.best}, {words}")
        if self._history is not None:
            self._write_remarks(out, self._history)
        if self._toml is None:
            out.line(f"the daemon has no policy {self._policy}: only the simulator has it")
        elif self._in_use != self.best:
            out.line("to use it, write into config.toml:" if self._is_sure else "to try it, in config.toml:")
            out.line("")
            out.line(self._toml)

    def _sentence(self) -> str:
        lead, best = self._lead, self._standings[self.best]
        sure = "" if best.wins is None else f"; it is the best in {best.wins:.0%} of the resamples"
        if self._in_use == self.best:
            ties = sum(each.value <= best.value for each in self._standings.values()) - 1
            return f"{self.best}, {self._word}, is " + (
                f"as good as any of these; so are {ties} others" if ties else f"the best of these{sure}"
            )
        if lead is None:
            return f"{self.best} is the best of these{sure}"
        gain = f"{self.best} is the best of these, {lead.behind:.1%} less than {self._in_use}, {self._word}"
        if lead.low is None or lead.high is None:
            return f"{gain}; too few tasks, or seeds, to say how sure that is"
        gain = f"{gain} ({lead.low:.1%} to {lead.high:.1%} with 95 % confidence){sure}"
        return gain if self._is_sure else f"{gain}\n{self._doubt()}: nothing here is surely better than {self._in_use}"

    def _doubt(self) -> str:
        return "but more tasks fail" if self._fails_more else "that may be chance"

    def _write_remarks(self, out: Output, history: History) -> None:
        left_out = history.left_out
        for count, what in (
            (left_out.unfinished, "have not ended"),
            (left_out.never_ran, "were cancelled or lost before they had run"),
            (left_out.before_history, "were submitted before the history begins"),
        ):
            if count:
                out.say(f"left out: {count:,} tasks that {what}")
        for model in history.new_models:
            name = f"model {model!r}" if model else "a worker without GPUs"
            out.say(f"nothing has run on {name} yet: it is taken to be as fast as the others in the mean")


def _row(name: str, standing: Standing) -> list[str]:
    between = "-" if standing.low is None else f"{standing.low:.1%} to {standing.high:.1%}"
    wins = "-" if standing.wins is None else f"{standing.wins:.0%}"
    return [name, f"{standing.value:,.2f}", f"{standing.behind:.1%}", between, wins]
