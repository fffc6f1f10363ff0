"""Finds what the tests want from the system, or installs it when it may.

A Chromium for the browser tests and Debian's copy of Fashion-MNIST. On Debian, as root, what is
missing is installed; elsewhere one line says what to do, and the tests that need it are skipped
(continuous integration, CI=true, refuses to skip).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing() -> list[str]:
    """The Debian packages whose content is not on this machine."""
    packages = []
    if not any(shutil.which(name) for name in [os.environ.get("CHROMIUM", ""), *BROWSERS]):
        packages.append("chromium")
    from dsclib.datasets import fashion_mnist_on_disk

    if not fashion_mnist_on_disk():
        packages.append("dataset-fashion-mnist")
    return packages


def main() -> int:
    packages = missing()
    if not packages:
        return 0
    if Path("/etc/debian_version").exists() and os.geteuid() == 0:
        print(f"Installing {', '.join(packages)} for the tests", flush=True)
        apt = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run([*apt, *step], env=env, capture_output=True, text=True)
            if done.returncode:
                print(f"apt-get {step[0]} failed:\n{done.stdout}{done.stderr}")
                break
        packages = missing()
    if packages:
        print(
            f"Not on this machine: {', '.join(packages)}. The tests that need them are skipped; "
            "install them (on Debian: apt install " + " ".join(packages) + ") to run every test"
        )
        return 1 if os.environ.get("CI") else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
