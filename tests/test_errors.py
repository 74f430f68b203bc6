"""How texts of others are shown."""

import json

import pytest

from gpt2wds.errors import shown, shown_json

BAD = ["\x1b[2J", "\x9b31m", "\r", "\n", "\0", "\x7f", "\u202e", "\u2066", "\u2028", "\udcff"]


@pytest.mark.parametrize("bad", BAD)
def test_what_speaks_to_a_terminal_is_shown_as_an_escape(bad: str) -> None:
    text = shown(f"a{bad}é漢b")
    assert bad[0] not in text and text.startswith("a\\") and text.endswith("é漢b")
    assert shown(f"a{bad}b", keep=bad) == f"a{bad}b"
    written = shown_json(json.dumps([f"a{bad}b"], ensure_ascii=False))
    assert bad[0] not in written and json.loads(written) == [f"a{bad}b"]


def test_other_characters_stay() -> None:
    for text in ("plain", "ünïcödé", "漢字", "שלום", "a\u200db", "a\xa0b", "\\x1b", "\U0001f600"):
        assert shown(text) == text
