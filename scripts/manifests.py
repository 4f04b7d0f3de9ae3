"""Make all that follows from the chart and from the settings; `--check` only says what is out of step.

    helm/tailrun/values.schema.json   from the comments of values.yaml and the names in app/config.py
    helm/tailrun/README.md            its table of values
    helm/tailrun/files/               from monitoring/
    k8s/base/                         the chart rendered with k8s/values.yaml, a file for each template
    k8s/overlays/*/added.yaml         what the overlay's values.yaml makes besides
    k8s/overlays/*/changes/           what it makes otherwise, as patches
    k8s/overlays/*/config.env         the settings that it adds or changes
    k8s/components/*/                 what the component's values.yaml makes besides: autoscalers

For `kubectl apply -k` a few things are taken out: Helm's own labels, hooks, and the ConfigMap of settings
with its checksums, for kustomize makes ConfigMaps of its own whose names change with their content.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import chart_values  # noqa: E402 - found beside this file
import helm_python as helm  # noqa: E402
from pydantic import SecretStr  # noqa: E402

from app.config import VARIABLES  # noqa: E402

CHART, KUSTOMIZE, MONITORING = ROOT / "helm/tailrun", ROOT / "k8s", ROOT / "monitoring"
NAMESPACE = "agents"
BEGIN, END = "<!-- values: made by `make manifests` -->", "<!-- end of values -->"
HEADER = "# Made by `make manifests` from helm/tailrun; do not edit.\n"
OF_THE_CHART = frozenset(
    {
        *("HOST", "PORT", "WORKER_HOST", "WORKER_PORT", "DATA_DIR", "UP_WORKERS", "REDIS_PORT"),
        *("TOOL_EXECUTOR", "TOOL_NAMESPACE", "TOOL_IMAGE", "TOOL_IMAGES_ALLOWED", "TOOL_PROFILES"),
        *("TOOL_SYNC_URL", "STAGING_PORT"),
        *("TOOL_IMAGE_PULL_SECRET", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"),
        "API_TOKEN",
    }
)
"""Settings that the chart makes of its other values, or the cluster gives."""

_HELMS = re.compile(r"helm\.sh/chart$|app\.kubernetes\.io/managed-by$|checksum/")

Object = dict[str, Any]


def setting_names() -> dict[str, list[str]]:
    """Return which settings may stand in the ConfigMap, and which in the Secret."""
    free = VARIABLES
    secret = {name for name, about in free.items() if SecretStr in getattr(about.annotation, "__args__", ())}
    secret |= {"S3_ACCESS_KEY"}
    open_ = (free.keys() - secret) | {"S3_ACCESS_KEY"}
    return {
        "config": sorted(open_ - OF_THE_CHART),
        "secrets.values": sorted(secret - OF_THE_CHART),
    }


# -- the chart's own files ------------------------------------------------------------------


def chart_files() -> dict[Path, str]:
    """Return what stands in the chart's folder and is made."""
    values = chart_values.read((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = chart_values.schema(values, setting_names())
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = {
        CHART / "values.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        CHART / "README.md": f"{before}{BEGIN}\n{chart_values.table(values)}{END}{after}",
        CHART / "files/alerts.yaml": (MONITORING / "alerts.yaml").read_text(encoding="utf-8"),
    }
    for path in sorted(MONITORING.glob("dashboard*.json")):
        made[CHART / "files/dashboards" / path.name] = path.read_text(encoding="utf-8")
    return made


# -- kustomize ------------------------------------------------------------------------------


def render(values: Object) -> dict[str, list[Object]]:
    """Return the objects that the chart makes of `values`, by the name of their template."""
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="tailrun", namespace=NAMESPACE)
    made: dict[str, list[Object]] = {}
    for path, text in sorted(rendered.items()):
        if path.endswith(".yaml"):
            objects = [each for each in yaml.safe_load_all(text) if each]
            kept = [_for_kustomize(each) for each in objects if not _is_hook(each)]
            if kept:
                made[Path(path).name] = kept
    return made


def _is_hook(made: Object) -> bool:
    return "helm.sh/hook" in made["metadata"].get("annotations", {})


def _for_kustomize(made: Object) -> Object:
    template = made.get("spec", {}).get("template", {})
    for metadata in (made["metadata"], template.get("metadata", {})):
        for kind in ("labels", "annotations"):
            kept = {name: value for name, value in metadata.pop(kind, {}).items() if not _HELMS.match(name)}
            if kept:
                metadata[kind] = kept
    return made


def identity(made: Object) -> tuple[str, str, str]:
    """Return what makes an object the same object."""
    return made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"]


def dump(objects: list[Object]) -> str:
    """Write objects as one YAML file."""
    return HEADER + yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True, width=110)


def kustomize_files() -> dict[Path, str]:
    """Return the files below k8s/ that are made."""
    base = render(_load(KUSTOMIZE / "values.yaml"))
    made: dict[Path, str] = {}
    [config] = base.pop("config.yaml")
    settings = "".join(f"{name}={value}\n" for name, value in config["data"].items())
    made[KUSTOMIZE / "base/config.env"] = HEADER + settings
    for name, objects in base.items():
        made[KUSTOMIZE / "base" / name] = dump(objects)
    made[KUSTOMIZE / "base/kustomization.yaml"] = HEADER + yaml.safe_dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": sorted(base),
            "configMapGenerator": [
                {"name": "tailrun-config", "namespace": NAMESPACE, "envs": ["config.env"]}
            ],
        },
        sort_keys=False,
    )
    known = {identity(each): each for objects in base.values() for each in objects}
    for values in sorted(KUSTOMIZE.glob("overlays/*/values.yaml")):
        made |= overlay_files(values, known)
    for values in sorted(KUSTOMIZE.glob("components/*/values.yaml")):
        made |= component_files(values, known)
    return made


def overlay_files(values: Path, base: dict[tuple[str, str, str], Object]) -> dict[Path, str]:
    """Return what one overlay's values add to the base, and what they change."""
    merged = _merge(_load(KUSTOMIZE / "values.yaml"), _load(values))
    rendered = render(merged)
    [config] = rendered.pop("config.yaml")
    [before] = render(_load(KUSTOMIZE / "values.yaml"))["config.yaml"]
    settings = sorted(config["data"].items() - before["data"].items())
    objects = [each for found in rendered.values() for each in found if each["kind"] != "Secret"]
    added = [each for each in objects if identity(each) not in base]
    changed = [each for each in objects if identity(each) in base and each != base[identity(each)]]
    folder = values.parent
    return {
        folder / "added.yaml": dump(added),
        folder / "changes/changed.yaml": dump([_patch(each, base[identity(each)]) for each in changed]),
        # A component, so that one of k8s/components may have the last word about what is in it.
        folder / "changes/kustomization.yaml": _component(patches=[{"path": "changed.yaml"}]),
        folder / "config.env": HEADER + "".join(f"{name}={value}\n" for name, value in settings),
    }


def component_files(values: Path, base: dict[tuple[str, str, str], Object]) -> dict[Path, str]:
    """Return a component that adds what `values` make besides the base.

    An autoscaler says how many pods there are, so their Deployment no longer does. A generated Secret's
    name is known to kustomize in its own kinds alone.
    """
    rendered = render(_merge(_load(KUSTOMIZE / "values.yaml"), _load(values)))
    del rendered["config.yaml"]
    objects = [each for found in rendered.values() for each in found]
    added = [each for each in objects if identity(each) not in base]
    scaled = [name for kind, _, name in map(identity, added) if kind.startswith(("Horizontal", "Scaled"))]
    patch = json.dumps([{"op": "remove", "path": "/spec/replicas"}])
    made = {
        values.parent / "added.yaml": dump(added),
        values.parent / "kustomization.yaml": _component(
            resources=["added.yaml"],
            patches=[{"target": {"kind": "Deployment", "name": name}, "patch": patch} for name in scaled],
            **({"configurations": ["names.yaml"]} if "keda" in values.parent.name else {}),
        ),
    }
    if "keda" in values.parent.name:
        field = {"kind": "TriggerAuthentication", "path": "spec/secretTargetRef/name"}
        names = {"nameReference": [{"kind": "Secret", "version": "v1", "fieldSpecs": [field]}]}
        made[values.parent / "names.yaml"] = HEADER + yaml.safe_dump(names, sort_keys=False)
    return made


def _component(**fields: object) -> str:
    head = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
    return HEADER + yaml.safe_dump(head | fields, sort_keys=False)


def _patch(made: Object, before: Object) -> Object:
    """Return the whole object as a patch; variables that it has no more are deleted by name."""
    pod, old = (each.get("spec", {}).get("template", {}).get("spec", {}) for each in (made, before))
    for now, then in zip(pod.get("containers", ()), old.get("containers", ()), strict=True):
        kept = {each["name"] for each in now.get("env", ())}
        gone = [each["name"] for each in then.get("env", ()) if each["name"] not in kept]
        if gone:
            now["env"] = [*now.get("env", ()), *({"name": name, "$patch": "delete"} for name in gone)]
    return made


def _load(path: Path) -> Object:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _merge(into: Object, values: Object) -> Object:
    merged = dict(into)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


# -- writing --------------------------------------------------------------------------------


def leftovers(made: dict[Path, str]) -> list[Path]:
    """Return files of folders that are made whole, which nothing makes any more."""
    whole = [*(KUSTOMIZE / "base").glob("*"), *(CHART / "files/dashboards").glob("*")]
    whole += KUSTOMIZE.glob("overlays/*/changes/*")
    return [path for path in whole if path not in made]


def main() -> int:
    """Write everything; with --check only say what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only check")
    checking: bool = parser.parse_args().check
    stale: list[Path] = []
    for make in (chart_files, kustomize_files):  # the second reads what the first wrote
        made = make()
        stale += [p for p, text in made.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
        if not checking:
            for path, text in made.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    gone = leftovers({**chart_files(), **kustomize_files()})
    if checking and (stale or gone):
        names = ", ".join(str(path.relative_to(ROOT)) for path in [*stale, *gone])
        print(f"Out of step with the chart or the settings: {names}. Run make manifests.", file=sys.stderr)
        return 1
    for path in gone:
        path.unlink()
    print(f"{len(stale)} files written" if not checking else "All in step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
