"""Takes out of an image's virtual environment what Tailrun never reads: half of its size.

python slim_packages.py /opt/tailrun

Native libraries lose their debugging symbols, and botocore the descriptions of the services that
nobody here calls. What stays of botocore is the way to S3 and to the credentials for it; of kubernetes the
asyncio client and its credentials, without a class for each thing in a cluster: we send and read JSON. Run
while the image is built; it changes the environment that it is given.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

BOTOCORE_SERVICES = {"s3", "sso", "sso-oidc", "signin", "sts"}
SOURCES = {".c", ".h", ".pxd", ".pyi", ".pyx"}


def strip_libraries(site: Path) -> None:
    """Remove debugging symbols; a library that `strip` does not understand stays as it is."""
    for library in sorted(site.rglob("*.so*")):
        subprocess.run(["strip", "--strip-unneeded", str(library)], check=False)


def drop_services(site: Path) -> None:
    """Keep of botocore's data only the services that are used, and the files that all share."""
    data = site / "botocore" / "data"
    for folder in data.iterdir() if data.is_dir() else []:
        if folder.is_dir() and folder.name not in BOTOCORE_SERVICES:
            shutil.rmtree(folder)


def drop_cluster_classes(site: Path) -> None:
    """Keep of kubernetes what makes requests and logs in."""
    package = site / "kubernetes"
    if not package.is_dir():
        return
    for folder in [path for path in package.iterdir() if path.is_dir() and path.name != "aio"]:
        shutil.rmtree(folder)
    client = package / "aio" / "client"
    for folder in (client / "api", client / "models"):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "__init__.py").touch()
    _drop_lines(package / "__init__.py", "from . import ")
    _drop_lines(
        client / "__init__.py", "from kubernetes.aio.client.api.", "from kubernetes.aio.client.models."
    )


def _drop_lines(module: Path, *beginnings: str) -> None:
    lines = module.read_text(encoding="utf-8").splitlines(keepends=True)
    module.write_text("".join(line for line in lines if not line.startswith(beginnings)), encoding="utf-8")


def drop_sources(site: Path) -> None:
    """Remove what only a compiler or a type checker reads."""
    for path in [path for path in site.rglob("*") if path.suffix in SOURCES]:
        path.unlink()


def main() -> int:
    """Slim the environment named on the command line."""
    for site in Path(sys.argv[1]).glob("lib/python3*/site-packages"):
        drop_services(site)
        drop_cluster_classes(site)
        drop_sources(site)
        strip_libraries(site)
    return 0


if __name__ == "__main__":
    sys.exit(main())
