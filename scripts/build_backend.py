"""Setuptools' build backend, which also puts conf/ into the wheel as etude/conf, so that `etude` works outside the clone."""

import shutil
from pathlib import Path

from setuptools.build_meta import build_editable as build_editable
from setuptools.build_meta import build_sdist as build_sdist
from setuptools.build_meta import build_wheel as build_wheel
from setuptools.build_meta import get_requires_for_build_editable as get_requires_for_build_editable
from setuptools.build_meta import get_requires_for_build_sdist as get_requires_for_build_sdist
from setuptools.build_meta import get_requires_for_build_wheel as get_requires_for_build_wheel
from setuptools.build_meta import prepare_metadata_for_build_editable as prepare_metadata_for_build_editable
from setuptools.build_meta import prepare_metadata_for_build_wheel as prepare_metadata_for_build_wheel
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies the configuration beside the modules; an editable install reads the clone's own."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "etude" / "conf", dirs_exist_ok=True)

    def get_source_files(self) -> list[str]:
        """Adds what a source archive needs to build the wheel again."""
        conf = [str(path) for path in sorted(Path("conf").rglob("*.yaml"))]
        return [*super().get_source_files(), "scripts/build_backend.py", *conf]
