"""The demo's command line; what it runs is tested by the tools that it calls."""

import importlib

import pytest


@pytest.mark.parametrize("words", [["--help"], ["--epochs", "3"], ["x"], ["SEED", "1"]])
def test_the_demo_starts_nothing_for_words_it_does_not_know(words, monkeypatch, capsys):
    demo = importlib.import_module("demo")
    monkeypatch.setattr("sys.argv", ["tools/demo.py", *words])
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: pytest.fail("something started"))
    with pytest.raises(SystemExit) as end:
        demo.main()
    out, err = capsys.readouterr()
    if words == ["--help"]:
        assert end.value.code == 0 and "drawn street scenes" in out
    else:
        assert end.value.code == 2 and f"unrecognized arguments: {' '.join(words)}" in err
