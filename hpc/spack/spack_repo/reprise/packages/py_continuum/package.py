"""continuum, which Spack has no package of: with what it imports, and not the linters that its metadata asks for."""

from spack.package import depends_on, license, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyContinuum(PythonPackage):
    """Data sets and scenarios for continual learning."""

    homepage = "https://github.com/Continvvm/continuum"
    pypi = "continuum/continuum-1.2.7.tar.gz"

    license("MIT")

    version("1.2.7", sha256="baadcdbe2f5b3c05254307c73434a012f2a3d663e1be9469a03d4b82559e98e1")

    depends_on("py-setuptools", type="build")

    depends_on("python@3.6:", type=("build", "run"))
    depends_on("pil@6.2.1:", type="run")
    depends_on("py-datasets@1.6.0:", type="run")
    depends_on("py-h5py@3.1.0:", type="run")
    depends_on("py-imagehash@4.2.1:", type="run")
    depends_on("py-matplotlib@3.1.0:", type="run")
    depends_on("py-numpy@1.17.2:", type="run")
    depends_on("py-pandas@1.1.5:", type="run")
    depends_on("py-requests@2.24.0:", type="run")
    depends_on("py-scikit-image@0.15.0:", type="run")
    depends_on("py-scikit-learn@0.24.1:", type="run")
    depends_on("py-scipy@1.3.3:", type="run")
    depends_on("py-six", type="run")
    depends_on("py-torch@1.2.0:", type="run")
    depends_on("py-torchvision@0.4.0:", type="run")
