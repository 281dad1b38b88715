"""Spack's own package with a version that pyproject.toml accepts; delete this one where Spack's has 1.1 or later."""

from spack.package import depends_on, version
from spack_repo.builtin.packages.py_scikit_build_core.package import PyScikitBuildCore as BuiltinPyScikitBuildCore


class PyScikitBuildCore(BuiltinPyScikitBuildCore):
    __doc__ = BuiltinPyScikitBuildCore.__doc__

    version("1.1.2", sha256="7893709119c5ab1be75cd10442383132c9433b9f104dacef5185949efbea7974")

    depends_on("python@3.9:", type=("build", "run"), when="@1.1:")
    depends_on("py-hatchling@1.24:", type="build", when="@1.1:")
    depends_on("py-hatch-vcs@0.4:", type="build", when="@1.1:")
    depends_on("py-pathspec@0.12:", type=("build", "run"), when="@1.1:")
