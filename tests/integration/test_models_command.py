"""`tailrun models`: what is set, whether it works, and no key anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.scripted_model import Answer, ScriptedModel, chat_reply, error, messages_reply
from typer.testing import CliRunner, Result

from app.cli import command_line
from tailrun.commands.connection import CliError

CALL = [("a1", "answer", '{"sum": 4}')]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedModel]:
    server = ScriptedModel()
    prices = tmp_path / "prices.yaml"
    prices.write_text("some: {input: 1, output: 2}\n", encoding="utf-8")
    for name, value in {
        "LLM_URL": server.url,
        "LLM_KEY": "test-key-0001",
        "LLM_MODEL": "some",
        "LLM_PRICES_FILE": str(prices),
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def models(*args: str) -> Result:
    done = CliRunner().invoke(command_line(), ["models", *args])
    assert "test-key-0001" not in done.output
    return done


def test_no_model_says_what_to_set() -> None:
    done = models()
    assert done.exit_code == 1
    assert "LLM_MODEL" in str(done.exception)


def test_models_are_listed_without_being_called(server: ScriptedModel) -> None:
    done = models()
    assert done.exit_code == 0
    assert done.output == f"some\tsome\tchat\t{server.url}\tknown\tdefault\n"
    [facts] = json.loads(models("--json").output)
    assert facts["has_key"] is True
    assert facts["default"] is True
    assert server.asked == []


def test_a_model_that_works(server: ScriptedModel) -> None:
    server.script(Answer(chat_reply(calls=CALL, usage=(100, 20))))
    done = models("--check")
    assert done.exit_code == 0
    name, works, first, tokens, cost, remarks = done.output.rstrip("\n").split("\t")
    assert (name, works, tokens, cost, remarks) == ("some", "yes", "100 + 20", "$0.000140", "")
    assert first.endswith(" s")
    assert server.asked[0].body["tools"][0]["function"]["name"] == "answer"


def test_the_other_dialect(server: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DIALECT", "messages")
    server.script(Answer(messages_reply(calls=CALL)))
    assert models("--check").exit_code == 0
    assert server.asked[0].target == "/v1/messages"


def test_what_was_learned_is_told(server: ScriptedModel) -> None:
    server.script(error(400, "stream_options is not supported"), Answer(chat_reply(calls=CALL, usage=None)))
    [report] = json.loads(models("--check", "--json").output)
    assert report["ok"] is True
    assert report["learned"] == ["The server takes no stream_options."]
    assert report["usage_estimated"] is True


def test_a_model_without_tools_does_not_work(server: ScriptedModel) -> None:
    server.script(Answer(chat_reply("It is 4.")))
    done = models("--check")
    assert done.exit_code == 1
    assert "called no tool" in done.output


def test_a_wrong_key_is_told(server: ScriptedModel) -> None:
    server.script(error(401, "Incorrect API key provided: test-key-0001"))
    done = models("--check")
    assert done.exit_code == 1
    assert "LLM_KEY" in done.output


def test_one_of_several_is_asked(
    server: ScriptedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(f"models: {{quick: {{model: some-small, url: '{server.url}'}}}}", encoding="utf-8")
    monkeypatch.setenv("LLM_MODELS_FILE", str(path))
    assert [line.split("\t")[0] for line in models().output.splitlines()] == ["some", "quick"]
    server.script(Answer(chat_reply(calls=CALL)))
    assert models("quick", "--check").exit_code == 0
    assert [asked.body["model"] for asked in server.asked] == ["some-small"]
    unknown = models("slow").exception
    path.write_text("models: {quick: {}}", encoding="utf-8")
    for wrong, said in ((unknown, "some, quick"), (models().exception, "models.quick: model")):
        assert isinstance(wrong, CliError)
        assert wrong.code == 2
        assert said in str(wrong)
