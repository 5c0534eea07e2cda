"""The conformance suite of policies: what each must do, alone over plain rows and inside the engine.

    from schedd.testing import PolicyConformance

    class TestMine(PolicyConformance):
        policy = Mine

Its tests are plain methods with plain asserts: pytest collects them, and `failures` runs them without it. Nothing is
random from run to run and nothing waits. docs/own-policy.md says what is asked of a policy, and why.
"""

from __future__ import annotations

from schedd.testing.conformance import PolicyConformance, failures

__all__ = ["PolicyConformance", "failures"]
