"""Which models a deployment has: settings, file, inheritance, and mistakes that are told with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.llm.models_file import BadModels, ModelTable, load


def table(tmp_path: Path, text: str | None = None, **given: Any) -> ModelTable:
    path = tmp_path / "models.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        given["llm_models_file"] = path
    return load(Settings(**given).llm)


def test_nothing_set_is_no_model(tmp_path: Path) -> None:
    assert table(tmp_path).models == {}
    assert table(tmp_path).default is None


def test_a_model_alone_is_its_makers(tmp_path: Path) -> None:
    """The address is that of the dialect's maker."""
    found = table(tmp_path, llm_model="some", llm_key="k").default
    assert found is not None
    assert (found.name, found.model, found.secret) == ("some", "some", "k")
    assert found.url == "https://api.openai.com/v1"
    other = table(tmp_path, llm_model="some", llm_dialect="messages").default
    assert other is not None
    assert other.url == "https://api.anthropic.com"


@pytest.mark.parametrize(
    ("dialect", "given", "url"),
    [
        ("chat", "http://h:1/v1/", "http://h:1/v1"),
        ("chat", "http://h/v1/chat/completions", "http://h/v1"),
        ("messages", "https://h/v1", "https://h"),
        ("messages", "https://h/x/v1/messages/", "https://h/x"),
    ],
)
def test_an_address_may_be_written_as_people_copy_it(
    tmp_path: Path, dialect: Any, given: str, url: str
) -> None:
    found = table(tmp_path, llm_model="m", llm_url=given, llm_dialect=dialect).default
    assert found is not None
    assert found.url == url


FILE = """
models:
  quick: {url: "http://h/v1", model: some-small, key: file-key, timeout_s: 5}
  clever: {model: some-large}
"""


def test_an_entry_takes_limits_from_the_settings_but_no_key(tmp_path: Path) -> None:
    found = table(tmp_path, FILE, llm_model="own", llm_key="own-key", llm_idle_s=7, llm_proxy="http://p")
    assert list(found.models) == ["own", "quick", "clever"]
    quick, clever = found.models["quick"], found.models["clever"]
    assert (quick.timeout_s, quick.idle_s, quick.secret) == (5, 7, "file-key")
    assert (clever.secret, clever.proxy) == ("", None)
    assert found.secrets() == ["own-key", "file-key"]


def test_the_default_is_llm_model_else_the_first(tmp_path: Path) -> None:
    assert list(table(tmp_path, FILE).models) == ["quick", "clever"]
    assert list(table(tmp_path, FILE, llm_model="clever").models) == ["clever", "quick"]


def test_a_key_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("in-a-file\n", encoding="utf-8")
    text = f"models: {{m: {{model: x, key_file: {tmp_path / 'key'}}}}}"
    assert table(tmp_path, text).secrets() == ["in-a-file"]


def test_keys_are_not_shown(tmp_path: Path) -> None:
    assert "file-key" not in repr(table(tmp_path, FILE))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: {m: {model: x, dialect: morse, key: s3cret}}", "models.m: dialect"),
        ("models: {m: {key: s3cret}}", "models.m: model"),
        ("models: {m: {model: x, modell: y}}", "models.m: modell"),
        ("models: {m: {model: x, url: ftp://h}}", "no http"),
        ("models: {m: {model: x, url: 'http://u:s3cret@h'}}", "no login"),
        ("models: {m: {model: x, extra_body: {messages: []}}}", "messages"),
        ("models: {m: {model: x, extra_body: 'x'}}", "extra_body"),
        ("models: {m: {model: x, key: s3cret, key_file: /none}}", "not both"),
        ("models: {m: {model: x, key_file: /none}}", "/none can't be read"),
        ("models: {m: {model: x, key: s3cret…}}", "header"),
        ("models: {m: {model: x, proxy: 'socks5://s3cret'}}", "proxy is no http"),
        ("models: {m: 7}", "models.m"),
        ("models: {1: {model: x}}", "models.1"),
        ("models: {}", "has one key"),
        ("m: {model: x}", "has one key"),
        ("- 1", "has one key"),
        ("models:\n  m: {model: s3cret", "line 2: is no YAML"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_without_a_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadModels) as bad:
        table(tmp_path, text)
    assert says in str(bad.value)
    assert "s3cret" not in str(bad.value)
    assert "models.yaml" in str(bad.value)


def test_settings_that_lack_the_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadModels, match="LLM_MODEL"):
        table(tmp_path, llm_url="http://h/v1")
    with pytest.raises(BadModels, match="extra_body"):
        table(tmp_path, llm_model="m", llm_extra_body="{")
    with pytest.raises(BadModels, match=r"none\.yaml"):
        load(Settings(llm_models_file=tmp_path / "none.yaml").llm)
