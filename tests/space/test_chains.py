"""Unmet and conflicting requirements as chains, over environments that are made up."""

import pytest

pytestmark = pytest.mark.usefixtures("modules_of_space")

ENVIRONMENT: dict[str, tuple[str, list[str]]] = {
    "app": ("1.0", ["middle>=2", "optional; extra == 'more'", "elsewhere; sys_platform == 'plan9'"]),
    "middle": ("2.5", ["base<2"]),
    "base": ("2.0", []),
    "round": ("1", ["about"]),
    "about": ("1", ["round", "absent"]),
    "early": ("3.0rc1", []),
}


@pytest.mark.parametrize(("asked", "said"), [
    ("absent>=1", ["the strategy requires absent, which is not installed."]),
    ("base==1", ["the strategy has requirement base==1, but you have base 2.0."]),
    ("middle", ["middle 2.5 has requirement base<2, but you have base 2.0. (middle -> base<2)"]),
    ("app", ["middle 2.5 has requirement base<2, but you have base 2.0. (app -> middle>=2 -> base<2)"]),
    ("app[more]", ["middle 2.5 has requirement base<2, but you have base 2.0. (app[more] -> middle>=2 -> base<2)",
                   'app 1.0 requires optional, which is not installed. (app[more] -> optional; extra == "more")']),
    ("round", ["about 1 requires absent, which is not installed. (round -> about -> absent)"]),
    ("early>=2", []),
    ("base>=1", []),
])
def test_a_chain_ends_in_what_is_missing_or_wrong(asked: str, said: list[str]) -> None:
    from dependencies.environment import Installed, unmet

    def find(name: str) -> Installed | None:
        version, requires = ENVIRONMENT.get(name, ("", []))
        return Installed(version, tuple(requires)) if version else None

    assert list(unmet(asked, find)) == said
