"""What `schedd simulate` compares: policies, each as it is and with the settings that are to be tried with it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from msgspec import Struct

from schedd.cli.options import BadInput
from schedd.cli.values import is_toml

#: Policies and parameter sets of one call.
VARIANTS_MAX = 1000
#: A key with dots, and its value.
Change = tuple[str, str]


class Variant(Struct, frozen=True):
    """A policy with what is tried with it, and what is set in any case."""

    policy: str
    tried: tuple[Change, ...] = ()
    fixed: tuple[Change, ...] = ()

    @property
    def label(self) -> str:
        """Its name in tables and JSON."""
        told = ",".join(f"{key.removeprefix(f'policy.{self.policy}.')}={value}" for key, value in self.tried)
        return f"{self.policy}[{told}]" if told else self.policy

    @property
    def changes(self) -> list[str]:
        """KEY=VALUE of all that is not as in the configuration."""
        return [f"{key}={value}" for key, value in (*self.fixed, *self.tried)]

    def toml(self) -> str | None:
        """What to write into config.toml; None: only the simulator has such a policy."""
        from schedd.simulate.contest import settings_name

        name = settings_name(self.policy)
        tables: dict[str, list[str]] = {"policy": [f'name = "{name}"']}
        if self.policy == "packing":
            tables["policy.fifo"] = ["packing = true"]
        elif name != self.policy:
            return None
        for key, value in dict((*self.fixed, *self.tried)).items():
            table, _, name = key.rpartition(".")
            if _concerns(key, self.policy):
                tables.setdefault(table, []).append(f"{name} = {_as_toml(value)}")
        return "\n\n".join("\n".join([f"[{table}]", *lines]) for table, lines in tables.items())


def parse_change(text: str, option: str) -> Change:
    """Read KEY=VALUE. Raises BadInput."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise BadInput(f"{option} {text!r} is not of the form KEY=VALUE", "for instance policy.batch.batch_size=8")
    if key.strip() in ("policy", "policy.name"):
        raise BadInput(f"{option} does not say which policies run", "name them, for instance --policy fifo,batch")
    return key.strip(), value.strip()


def variants_of(policies: Sequence[str], tries: Sequence[str], changes: Sequence[str]) -> list[Variant]:
    """Each policy as it is, and with each combination of the values to be tried (KEY=A,B,…) that concern it.

    `changes` (KEY=VALUE) hold for all. Raises BadInput.
    """
    fixed = tuple(parse_change(text, "--set") for text in changes)
    alternatives = [parse_change(text, "--try") for text in tries]
    for key, values in alternatives:
        if not any(value.strip() for value in values.split(",")):
            raise BadInput(f"--try {key} has no value to try", "for instance policy.batch.batch_size=2,4,8")
        if not any(_concerns(key, policy) for policy in policies):
            policy = key.split(".")[1]
            raise BadInput(f"--try {key}: {policy} is not among the policies to run", f"add it: --policy {policy}")
    variants: dict[str, Variant] = {}
    for policy in policies:
        # None: as the configuration has it.
        mine: list[list[Change | None]] = [
            [None, *((key, value.strip()) for value in values.split(",") if value.strip())]
            for key, values in alternatives
            if _concerns(key, policy)
        ]
        for chosen in itertools.product(*mine):
            variant = Variant(policy, tuple(change for change in chosen if change is not None), fixed)
            variants.setdefault(variant.label, variant)
            if len(variants) > VARIANTS_MAX:
                raise BadInput(f"these are more than {VARIANTS_MAX:,} combinations", "try fewer values at a time")
    return list(variants.values())


def _concerns(key: str, policy: str) -> bool:
    path = key.split(".")
    return path[0] != "policy" or len(path) < 3 or path[1] == policy


def _as_toml(text: str) -> str:
    return text if is_toml(text) else json.dumps(text)
