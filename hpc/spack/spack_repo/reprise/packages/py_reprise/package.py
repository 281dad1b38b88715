"""Reprise for Spack 1.0 and later, with the bounds of pyproject.toml: tests/unit/test_hpc.py compares the two.

The extra `bench` is left out: what it brings is for benchmarks/, which are in the checkout and not in the package.
"""

from pathlib import Path

from spack.package import (
    EnvironmentModifications,
    InstallError,
    conflicts,
    depends_on,
    find,
    license,
    on_package_attributes,
    run_after,
    variant,
    version,
    which,
)
from spack_repo.builtin.build_systems.cuda import CudaPackage
from spack_repo.builtin.build_systems.python import PythonPackage


class PyReprise(PythonPackage, CudaPackage):
    """Continual learning with a distributed rehearsal buffer."""

    # The checkout that this file lies in: what is committed there is what is built.
    git = f"file://{Path(__file__).resolve().parents[6]}"
    import_modules = ("reprise", "reprise.buffer", "reprise.cpp_loader", "reprise.main")

    license("Apache-2.0")

    version("main", branch="main")

    variant("horovod", default=True, description="Horovod, for horovodrun, mpirun and srun; torchrun needs none")
    variant("mpi", default=True, description="Horovod over MPI, for mpirun and srun", when="+horovod")
    variant("gloo", default=True, description="Horovod over sockets, for horovodrun --gloo", when="+horovod")
    variant("ucx", default=True, description="Read samples on other nodes through UCX, not by collectives")
    variant("tensorboard", default=False, description="Write TensorBoard events")
    variant("wandb", default=False, description="Weights & Biases: logging, and the agents of sweeps")

    depends_on("cxx", type="build")
    depends_on("cmake@3.18:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("py-pybind11@2.13:", type="build")
    depends_on("py-scikit-build-core@1.1:", type="build")
    depends_on("googletest", type="test")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("pil@9.5:", type="run")
    depends_on("py-continuum@1.2.7:", type="run")
    depends_on("py-jinja2@3.1:", type="run")
    depends_on("py-matplotlib@3.7:", type="run")
    depends_on("py-numpy@1.26:", type="run")
    depends_on("py-psutil@5.9:", type="run")
    depends_on("py-pydantic@2.5:", type="run")
    depends_on("py-pyyaml@6.0:", type="run")
    depends_on("py-rich@13.0:", type="run")
    depends_on("py-scikit-learn@1.3:", type="run")
    depends_on("py-scipy@1.10:", type="run")
    depends_on("py-six@1.16:", type="run")
    depends_on("py-timm@1.0.31:", type="run")
    depends_on("py-huggingface-hub@0.30:", type="run")
    depends_on("py-safetensors@0.4:", type="run")
    depends_on("py-torch@2.4:2.13+distributed", type="run")
    depends_on("py-torchvision@0.17:", type="run")

    # Built against its headers, and opened at run time.
    depends_on("ucx@1.13:1", type=("build", "run"), when="+ucx")

    depends_on("py-horovod@0.28.1 frameworks=pytorch", type="run", when="+horovod")
    depends_on("py-horovod controllers=mpi", type="run", when="+mpi")
    depends_on("py-horovod controllers=gloo", type="run", when="+gloo")
    depends_on("py-horovod~cuda tensor_ops=mpi", type="run", when="+mpi~cuda")
    depends_on("py-horovod~cuda tensor_ops=gloo", type="run", when="+horovod~mpi~cuda")
    depends_on("py-horovod+cuda tensor_ops=nccl", type="run", when="+horovod+cuda")
    # mpirun itself, on the PATH of whoever loads this.
    depends_on("mpi", type="run", when="+mpi")

    depends_on("py-tensorboard@2.14:", type="run", when="+tensorboard")
    depends_on("py-wandb@0.16:", type="run", when="+wandb")

    depends_on("py-torch~cuda", type="run", when="~cuda")
    depends_on("py-torch+cuda", type="run", when="+cuda")
    for arch in CudaPackage.cuda_arch_values:
        depends_on(f"py-torch cuda_arch={arch}", type="run", when=f"+cuda cuda_arch={arch}")
        depends_on(f"py-horovod cuda_arch={arch}", type="run", when=f"+horovod+cuda cuda_arch={arch}")

    conflicts("~mpi~gloo", when="+horovod", msg="Horovod needs one of them")
    conflicts("cuda_arch=none", when="+cuda", msg="say for which GPUs, like cuda_arch=80")

    def config_settings(self, spec, prefix):
        if not spec.satisfies("+ucx"):
            return {}
        return {"cmake.define.REPRISE_UCX_INCLUDE": spec["ucx"].prefix.include}

    def setup_run_environment(self, env: EnvironmentModifications) -> None:
        if self.spec.satisfies("+ucx"):
            # dlopen() finds it there.
            env.prepend_path("LD_LIBRARY_PATH", self.spec["ucx"].prefix.lib)

    @run_after("install")
    def check_engine(self):
        # pip is content without it, as pyproject.toml wants it where there is no compiler.
        if not find(self.prefix, "_core.*.so"):
            raise InstallError("the C++ engine was not built; what the compiler said is in the build's log")

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def test_engine(self):
        """The C++ tests, with `spack install --test=root py-reprise`."""
        build = f"{self.stage.path}/engine-tests"
        which("cmake", required=True)("-S", self.stage.source_path, "-B", build, "-G", "Ninja")
        which("cmake", required=True)("--build", build)
        which("ctest", required=True)("--test-dir", build, "--output-on-failure")
