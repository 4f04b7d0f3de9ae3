"""`tailrun models`: which language models this deployment has, and whether they work."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.config import settings
from tailrun.commands.connection import CliError
from tailrun.commands.tables import table

if TYPE_CHECKING:
    from app.llm.check import ModelReport
    from app.llm.models_file import ModelConfig
    from app.llm.prices import Prices

_MICRO = 1_000_000


def models(
    name: Annotated[
        str | None, typer.Argument(help="One of them; left out: all.", show_default=False)
    ] = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Call each once; that costs a small call.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the language models of this machine's settings; --check calls them. Needs no server."""
    from app.llm.models_file import BadModels, load  # noqa: PLC0415 - `--help` needs none of this
    from app.llm.prices import Prices  # noqa: PLC0415

    chosen = settings()
    try:
        known, prices = load(chosen.llm), Prices.load(chosen.llm.prices_file)
    except BadModels as error:
        raise CliError(str(error), 2) from error
    if not known.models:
        raise CliError("No model is configured: set LLM_URL, LLM_KEY and LLM_MODEL (see docs/agent.md)")
    if name is not None and name not in known.models:
        raise CliError(f"There is no model {name!r}; there are: {', '.join(known.models)}", 2)
    configs = [config for config in known.models.values() if name in (None, config.name)]
    if check:
        _check(configs, prices, as_json=as_json)
        return
    rows = [_facts(config, prices, default=config == known.default) for config in configs]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table(("MODEL", "PROVIDER'S NAME", "DIALECT", "ADDRESS", "PRICE", ""), [_row(row) for row in rows])


def _facts(config: ModelConfig, prices: Prices, *, default: bool) -> dict[str, Any]:
    price = prices.of(config)
    return {
        "name": config.name,
        "model": config.model,
        "dialect": config.dialect,
        "url": config.url,
        "has_key": bool(config.secret),
        "context_tokens": config.context_tokens,
        "price_known": price is not None,
        "default": default,
    }


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    price = "known" if facts["price_known"] else "unknown"
    default = "default" if facts["default"] else ""
    return (facts["name"], facts["model"], facts["dialect"], facts["url"], price, default)


def _check(configs: list[ModelConfig], prices: Prices, *, as_json: bool) -> None:
    from app.llm.check import check as ask  # noqa: PLC0415 - loads what calls models

    async def all_of_them() -> list[ModelReport]:
        return [await ask(config, prices) for config in configs]

    reports = asyncio.run(all_of_them())
    if as_json:
        print(json.dumps([_report(each) for each in reports], indent=2))
    else:
        table(
            ("MODEL", "WORKS", "FIRST TOKEN", "TOKENS", "COST", "REMARKS"), [_line(each) for each in reports]
        )
    if not all(each.ok for each in reports):
        raise typer.Exit(1)


def _report(report: ModelReport) -> dict[str, Any]:
    usage = report.usage
    return {
        "name": report.name,
        "ok": report.ok,
        "problem": report.problem or None,
        "first_token_s": None if report.first_token_s is None else round(report.first_token_s, 3),
        "calls_tools": report.calls_tools,
        "input_tokens": usage.input if usage else None,
        "output_tokens": usage.output if usage else None,
        "usage_estimated": usage.estimated if usage else None,
        "cost_usd": None if report.cost is None else report.cost / _MICRO,
        "learned": list(report.learned),
        "served_by": report.served_by,
    }


def _line(report: ModelReport) -> tuple[str, ...]:
    usage = report.usage
    remarks = [report.problem, *report.learned]
    if usage is not None and usage.estimated:
        remarks.append("The server counts no tokens: they are estimated.")
    return (
        report.name,
        "yes" if report.ok else "no",
        "" if report.first_token_s is None else f"{report.first_token_s:.2f} s",
        "" if usage is None else f"{usage.input} + {usage.output}",
        "unknown" if report.cost is None else f"${report.cost / _MICRO:.6f}",
        " ".join(filter(None, remarks)),
    )
