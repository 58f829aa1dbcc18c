"""Names that Kafka takes and that no path can be led astray by."""

from __future__ import annotations

import pytest

from trickle.exceptions import ConfigurationError
from trickle.utils.names import check_name


@pytest.mark.parametrize("name", ["flights", "a", "A.b_c-9", "...", "x" * 249])
def test_names_that_are_fine(name: str) -> None:
    assert check_name(name, what="a topic's name") == name


ONLY = "use only ASCII letters, digits, '.', '_' and '-', as Kafka does"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (5, "a topic's name must be a str, not int: 5"),
        ("", "a topic's name is empty: give it at least one letter or digit"),
        (".", "a topic's name is '.', which Kafka refuses: use another name"),
        ("..", "a topic's name is '..', which Kafka refuses: use another name"),
        ("a/../b", f"a topic's name is 'a/../b', with '/' in it: {ONLY}"),
        ("flüge", f"a topic's name is 'flüge', with 'ü' in it: {ONLY}"),
        ("a\n", f"a topic's name is 'a\\n', with '\\n' in it: {ONLY}"),
        ("x" * 250, f"a topic's name has 250 characters, at most 249 are allowed: '{'x' * 40}'…"),
    ],
)
def test_names_that_are_not(name: object, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_name(name, what="a topic's name")
    assert str(caught.value) == message


def test_a_shorter_bound() -> None:
    with pytest.raises(ConfigurationError, match="has 11 characters, at most 10 are allowed"):
        check_name("x" * 11, what="it", chars_max=10)
