"""The page at `/docs`: whole, without anything from elsewhere, and safe whatever the document says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import pytest
from support.api_server import Api, serving, settings_for
from support.servers import RedisServer

from app.config import Settings
from app.main import create_app
from app.routes.docs_page import render

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
PAGE = render(DOCUMENT)
HOSTILE = "</code><script>alert(1)</script>\"'><img src=x onerror=alert(1)> `<b>` &amp; {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("docs")
    with serving(settings_for(folder, shared_redis.url, f"sqlite:///{folder / 'tailrun.db'}")) as api:
        yield api


def test_the_page_and_its_style_come_from_here_and_may_run_nothing(api: Api) -> None:
    """The policy allows one thing, our own style sheets; and the page needs nothing else."""
    page = api.client().get("/docs")
    assert page.text == PAGE
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(
        policy
    )
    assert not re.search(
        r"<script|<img|<iframe|<link(?! rel=\"stylesheet\")|\sstyle=|\son\w+=|javascript:", PAGE
    )
    loaded = re.findall(r'(?:href|src)="([^"#]+)"', PAGE)
    assert set(loaded) == {"docs/style.css", "openapi.json"}
    style = api.client().get("/docs/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_there_is_no_page_that_loads_from_elsewhere(api: Api) -> None:
    """What the framework would serve by itself loads scripts of a public host."""
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert api.client().get(path).status_code == 404


def test_every_route_and_schema_is_there() -> None:
    """With its method, its line for curl and its parameters; WebSockets too."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            anchor = re.sub(r"[^a-z0-9]+", "-", f"{method} {path}".lower()).strip("-")
            article = PAGE.partition(f'<article id="{anchor}">')[2].partition("</article>")[0]
            assert "curl" in article, path
            for parameter in operation.get("parameters", []):
                assert f"<code>{parameter['name']}</code>" in article
    for path in ("/v1/runs/{run_id}/stream", "/tasks/{run_id}/watch"):
        assert re.search(r'ws">WS</span> <span class="path">' + re.escape(path), PAGE)
    for name in DOCUMENT["components"]["schemas"]:
        assert f'<article id="schema-{name}">' in PAGE


def test_every_link_leads_somewhere_and_no_name_is_there_twice() -> None:
    names = re.findall(r' id="([^"]+)"', PAGE)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', PAGE)) <= set(names)


class Elements(HTMLParser):
    """Which elements a page has, with which attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, ...]] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add((tag, *(name for name, _ in attrs)))


def hostile(value: Any) -> Any:
    """Every text of a document becomes hostile; what says how it is built stays."""
    if isinstance(value, dict):
        kept = {"$ref", "in", "type", "required", "openapi"}
        return {name: one if name in kept else hostile(one) for name, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_all_text_of_the_document_is_escaped() -> None:
    """Descriptions, names, defaults, examples and paths, also as part of an address."""
    document = hostile(deepcopy(DOCUMENT))
    document["paths"]["/x/" + HOSTILE] = next(iter(document["paths"].values()))
    document["components"]["schemas"][HOSTILE] = {"type": HOSTILE, "description": HOSTILE}
    page = render(document)
    found = Elements()
    found.feed(page)
    ours = Elements()
    ours.feed(PAGE)
    assert found.seen <= ours.seen
    assert page.count("{{ 7 * 7 }}") > 100
