"""Passwords go to the servers they are for, and into nothing that is printed or kept."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.errors import UserError, without_passwords, without_user
from tuner.export.mlflow_mirror import _recorded
from tuner.records.database import parse_url
from tuner.records.store import Store

pytestmark = pytest.mark.quick

MARKER = "pass-1-word"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pass-1-word@host/db", "postgresql://me:***@host/db"),
        ("at 'http://me:pass-1-word@host:5000/api' it", "at 'http://me:***@host:5000/api' it"),
        ("http://:pass-1-word@host", "http://:***@host"),
        ("postgresql://me:pass-1-word/?#@x@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://host/db?user=me&password=pass-1-word&x=1",
            "postgresql://host/db?user=me&password=***&x=1",
        ),
        ("http://host:5000/#/experiments/1", "http://host:5000/#/experiments/1"),
        ("sqlite:////folder/a:b@c/tuner.db", "sqlite:////folder/a:b@c/tuner.db"),
        ("me@host: hello", "me@host: hello"),
    ],
)
def test_a_text_without_the_passwords_of_its_urls(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_a_link_is_the_address_alone() -> None:
    assert without_user("http://me:pass-1-word@host:5000/x") == "http://host:5000/x"
    assert without_user("http://host:5000") == "http://host:5000"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{MARKER}@127.0.0.1:1/none",
        f"postgresql://127.0.0.1:1/none?user=me&password={MARKER}",
        f"postgres://me:{MARKER}@127.0.0.1:1/none",
        f"postgresql://me:{MARKER}@127.0.0.1:port/none",
        f"postgresql://me:{MARKER}/@x y@127.0.0.1:port/none",
        f"postgresql://me:{MARKER} 127.0.0.1:port/none",
        f"postgresql://me:{MARKER}@127.0.0.1:99999/none",
        f"mysql://me:{MARKER}@127.0.0.1/none",
        f"nothing://me:{MARKER}@127.0.0.1/none",
        f"me:{MARKER}@127.0.0.1/none",
        f"sqlite://me:{MARKER}@127.0.0.1/none.db",
    ],
)
def test_no_mistake_in_an_address_of_records_prints_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuner.cli.main import main

    monkeypatch.setattr(sys, "argv", ["tuner", "status", "--study", "demo", "--database", url])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert MARKER not in printed.out + printed.err
    assert ended.value.code == 2
    assert printed.err.startswith("Error: ")
    assert "Traceback" not in printed.err
    # Whoever calls the library has the whole chain.
    with pytest.raises(UserError) as caught:
        Store.open(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert MARKER not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_port_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match=r"but got 'postgresql://\*\*\*@host:port/db'"):
        parse_url("postgresql://me:secret@host:port/db")
    with pytest.raises(UserError, match=r"but got 'postgresql://host:\*\*\*/db'"):
        parse_url("postgresql://host:port/db")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_all_ways_to_write_postgresql_are_one(scheme: str) -> None:
    assert parse_url(f"{scheme}://me@host/db").drivername == "postgresql+psycopg"


def test_the_page_of_a_run_is_without_the_password() -> None:
    run: Any = SimpleNamespace(info=SimpleNamespace(experiment_id="1", run_id="r"))
    page = _recorded(f"https://me:{MARKER}@host:5000/", run).page
    assert page == "https://host:5000/#/experiments/1/runs/r?workflowType=machine_learning"


def test_an_error_of_ours_keeps_its_traceback_and_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuner.cli import main

    def broken(**_: object) -> None:
        raise RuntimeError(f"cannot reach http://me:{MARKER}@host/")

    monkeypatch.setattr(main, "app", broken)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(RuntimeError) as caught:
        main.main()
    # What Python calls at the end of the process.
    sys.excepthook(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert printed.endswith("RuntimeError: cannot reach http://me:***@host/\n")
