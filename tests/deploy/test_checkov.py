"""What a scanner of others has to say about the chart. Installed apart: it wants other libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import SCENARIOS, scenario

pytestmark = [pytest.mark.deep, pytest.mark.timeout(900)]

CHECKOV = "checkov==3.3.30"
ACCEPTED = {
    "CKV_K8S_11": "CPU limits throttle what nobody else wants; requests divide what is short",
    "CKV_K8S_15": "images have versions or digests, and some clusters load them by hand",
    "CKV_K8S_35": "settings are environment variables, in one place, for every way to run Tailrun",
    "CKV_K8S_38": "the worker's token is its way to the tools' Jobs; nobody else has one",
    "CKV_K8S_40": "the official images of bundled servers know one user, whose number is low",
    "CKV_K8S_43": "image.digest is there for those who pin by it",
}
"""Findings that we live with, and why."""


def test_a_scanner_finds_nothing_that_we_did_not_decide(tmp_path: Path) -> None:
    """Every finding has its reason here, and every reason its finding."""
    for name in SCENARIOS:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(scenario(name).objects))
    command = [
        sys.executable,
        "-m",
        "uv",
        "tool",
        "run",
        "--from",
        CHECKOV,
        "checkov",
        "--quiet",
        "--compact",
    ]
    options = [
        "--framework",
        "kubernetes",
        "--skip-download",
        "--output",
        "json",
        "--directory",
        str(tmp_path),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["passed"] > 500
    assert report["summary"]["parsing_errors"] == 0
    found = report["results"]["failed_checks"]
    unknown = {(each["check_id"], each["check_name"], each["resource"]) for each in found}
    assert {each for each in unknown if each[0] not in ACCEPTED} == set()
    assert ACCEPTED.keys() - {each["check_id"] for each in found} == set()
