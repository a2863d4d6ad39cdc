"""The package's list of TRL's and peft's settings, beside those of the installed ones."""

import json

from tests.support.trl_settings import LIST, installed_settings


def test_names_and_types_of_settings_are_those_of_the_installed_libraries() -> None:
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    assert listed == installed_settings(), (
        "TRL or peft has changed: python tests/support/trl_settings.py updates the list"
    )
